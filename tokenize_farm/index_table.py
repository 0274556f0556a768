"""The merged index of a split: the indexes of all its shards as columns of one file, memory-mapped, so that opening 30 million clips reads
nothing and every process of a host shares the same pages.

    DIR/index/train.safetensors     columns; safetensors' layout (8 bytes, a JSON header, raw arrays), nothing pickled

N clips in the order of the shards' units and of the clips inside them, S shards, V views (sorted), G groups, W voices. `uniaudio shards
index` and the farm write it (`index_build.py`, which also tells what is current).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from uniaudio.atomic import publish_file
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.schema import shard_name

FORMAT = "uniaudio-index-1"
REMEDY = "delete it and run `uniaudio shards index` on its folder"
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "I32": np.int32, "I64": np.int64, "U64": np.uint64, "F32": np.float32, "F64": np.float64}
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}
# per shard: units (S,), tar_bytes (S,), tar_sha256 (S, 32), index_sha256 (S, 32), shard_starts (S + 1,) first clip of each shard
# per clip:  kinds (N,), speakers (N,) number among speaker_names or -1, key_starts (N + 1,) into key_bytes, groups (N,), voices (N,) or -1
# per view:  offsets (V, N) byte of the tar or -1; rows, columns (V, N): shape of the array, 0 where lacking
# groups:    clips alike in all that decides which tasks they serve: group_kinds (G,), group_views (G,) bit v: has view v,
#            group_company (G,) another clip of the voice exists; group_clips (G,), group_seconds (G,), narrowest, widest (G, V) columns
# voices:    speaker and kind, of clips with audio: voice_starts (W + 1,) into voice_clips, the clips sorted by voice
# fmt: off
COLUMNS = frozenset((
    "units", "tar_bytes", "tar_sha256", "index_sha256", "shard_starts",
    "kinds", "seconds", "speakers", "speaker_names", "key_starts", "key_bytes", "groups", "voices", "offsets", "rows", "columns",
    "group_kinds", "group_views", "group_company", "group_clips", "group_seconds", "narrowest", "widest", "voice_starts", "voice_clips",
))
# fmt: on


@dataclass(frozen=True)
class IndexTable:
    """Columns of a merged index (see the comment above), as arrays or memory maps. `directory`: path or URL of the folder of shards."""

    directory: str
    split: str
    views: tuple[str, ...]
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.kinds)

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["columns"][name]
        except KeyError as error:
            raise AttributeError(name) from error

    @property
    def num_shards(self) -> int:
        return len(self.units)

    @cached_property
    def view_numbers(self) -> dict[str, int]:
        """View -> its row in offsets, rows and columns."""
        return {view: number for number, view in enumerate(self.views)}

    def shard_name(self, shard: int) -> str:
        """`train-000003`."""
        return shard_name(self.split, int(self.units[shard]))

    def key(self, clip: int) -> str:
        """The clip's key."""
        start, stop = (int(place) for place in self.key_starts[clip : clip + 2])
        return self.key_bytes[start:stop].tobytes().decode()

    def shard_of(self, clips: np.ndarray) -> np.ndarray:
        """(clips,) int64 shard of each clip."""
        return np.searchsorted(self.shard_starts, clips, side="right") - 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names of the shards and the hashes of their indexes: the order of documents depends on nothing else of them."""
        digest = hashlib.sha256(self.split.encode())
        for column in (self.units, self.index_sha256):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


def table_path(directory: str | Path, split: str) -> Path:
    """Where the merged index of a folder lies."""
    return Path(directory) / "index" / f"{split}.safetensors"


def write_table(table: IndexTable, path: Path, *, mtime: int) -> None:
    """Publishes the file whole; OSError for a full disk. `mtime`: of the folder of shards, from before they were listed."""
    spans, end = {}, 0
    for name, column in sorted(table.columns.items(), key=lambda item: -item[1].itemsize):  # wide items first: all stay aligned
        spans[name] = {"dtype": _NAMES[column.dtype], "shape": list(column.shape), "data_offsets": [end, end + column.nbytes]}
        end += column.nbytes
    meta = {"format": FORMAT, "split": table.split, "views": json.dumps(table.views), "mtime": str(mtime)}
    header = json.dumps({"__metadata__": meta, **spans}).encode()
    header += b" " * (-len(header) % 64 + 56)  # the arrays begin at a multiple of 64 bytes
    path.parent.mkdir(exist_ok=True)
    with publish_file(path) as temporary, temporary.open("wb") as handle:
        handle.write(len(header).to_bytes(8, "little") + header)
        for name in spans:
            np.ascontiguousarray(table.columns[name]).tofile(handle)


def read_table(path: Path, directory: str) -> tuple[IndexTable, dict[str, str]]:
    """The table of a file, memory-mapped, and its metadata; UserError for a file of another form or cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(handle.read(length))
        meta = header.pop("__metadata__")
        if meta.get("format") != FORMAT:
            raise ValueError(f"format {meta.get('format')}, expected {FORMAT}")
        data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
        columns = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            if stop > len(data):
                raise ValueError(f"column {name} lies beyond its end")
            columns[name] = data[start:stop].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"]).view(np.ndarray)
        if lacking := COLUMNS - columns.keys():
            raise ValueError(f"no column {', '.join(sorted(lacking))}")
        return IndexTable(directory, meta["split"], tuple(json.loads(meta["views"])), columns), meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable merged index", seen=error, remedy=REMEDY) from error
