"""Reads arrays out of a shard's tar by the offsets of its index: one pread an array, no tar header walked, nothing unpickled.

What the data path of training uses. Safe to fork and to call from several threads (pread keeps no file position).
"""

import json
import os
from pathlib import Path

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.index import ShardIndex, read_index
from uniaudio.tokenize_farm.schema import VIEWS, base_view

_VERIFY = "run `uniaudio shards verify` on its folder"


class ShardReader:
    """One open shard.

    Args:
        tar: path of NAME.tar.
        index: its index; read from NAME.index.npz beside the tar where None.
    """

    def __init__(self, tar: str | Path, index: ShardIndex | None = None) -> None:
        self.path = Path(tar)
        self.index = index if index is not None else read_index(self.path.with_suffix(".index.npz"))
        self._types = {view: VIEWS[base_view(view)] for view in self.index.views.tolist()}
        try:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError("cannot open a shard", seen=error, remedy=_VERIFY) from error

    def __len__(self) -> int:
        return len(self.index)

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; closing twice is harmless."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def view(self, clip: int, view: str) -> np.ndarray:
        """The array of one view, of the dtype and dimensions of `schema.VIEWS`, writable and owned by the caller.

        Raises:
            KeyError: this clip has no such view.
            UserError: the tar ends before the array does.
        """
        column = self.index.view_number(view)
        offset = int(self.index.offsets[clip, column])
        if offset < 0:
            raise KeyError(f"clip {self.index.keys[clip]!r} has no view {view!r}")
        rows, columns = (int(n) for n in self.index.shapes[clip, column])
        dtype, dimensions = self._types[view]
        data = self._read(offset, rows * columns * np.dtype(dtype).itemsize)
        array = np.frombuffer(data, dtype=dtype)
        return array if dimensions == 1 else array.reshape(rows, columns)

    def meta(self, clip: int) -> dict:
        """The clip's KEY.json."""
        offset, length = (int(n) for n in self.index.json_spans[clip])
        return json.loads(bytes(self._read(offset, length)))

    def _read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        done = 0
        while done < length:
            count = os.preadv(self._handle, [memoryview(data)[done:]], offset + done)
            if count == 0:
                raise UserError(f"{self.path}: ends inside an array", seen=f"{offset + done} bytes", remedy=_VERIFY)
            done += count
        return data
