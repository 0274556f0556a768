"""Bytes of shards by number: opens each, checks it against its hash once, says which cannot be used. Knows no view and no task."""

import hashlib
import mmap
import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.data.clips import ClipTable

logger = get_logger(__name__)
OPEN_SHARDS = 128
_REMEDY = "run `uniaudio shards verify` on its folder; delete that shard's three files, run the farm again, then `uniaudio shards index`"


class ShardFault(UserError):
    """A shard that is missing, cut short or changed; `shard` is its number."""

    shard: int = -1


class ShardFiles:
    """The tars of a split, opened when first read; the last OPEN_SHARDS stay open.

    verify: hash each shard once a host-side loader (its workers share what was found) and compare with the index.
    A shard once found bad stays bad: every later read of it fails at once, in every worker.
    """

    def __init__(self, clips: ClipTable, *, verify: bool) -> None:
        self.clips, self.verify = clips, verify
        self._open: OrderedDict[int, int] = OrderedDict()
        self._state = np.frombuffer(
            mmap.mmap(-1, max(1, clips.num_shards)), np.uint8
        )  # shared with forked workers: 0 unknown, 1 good, 2 bad
        self._lock = threading.Lock()

    def read_into(self, shard: int, offset: int, target: memoryview) -> None:
        """Fills `target` from byte `offset` of the shard's tar; ShardFault where that cannot be."""
        handle = self._open.get(shard)
        if handle is None:
            handle = self._open_shard(shard)
        done = os.preadv(handle, [target], offset)
        while done < len(target):
            count = os.preadv(handle, [target[done:]], offset + done)
            if count == 0:
                raise self._fault(shard, "ends inside an array", seen=f"{offset + done} bytes")
            done += count

    def _open_shard(self, shard: int) -> int:
        path = self.path(shard)
        if self._state[shard] == 2:
            raise self._fault(shard, "cannot be used: see above", seen=path)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._fault(shard, "cannot be opened", seen=error) from error
        try:
            if self._state[shard] == 0:
                self._check(shard, handle)
        except BaseException:
            os.close(handle)
            raise
        if len(self._open) >= OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = handle
        return handle

    def path(self, shard: int) -> Path:
        """Where the tar lies on this host."""
        table, place = self.clips.table_of(shard)
        return Path(table.directory) / f"{table.shard_name(place)}.tar"

    def _check(self, shard: int, handle: int) -> None:
        table, place = self.clips.table_of(shard)
        size = os.fstat(handle).st_size
        if size != table.tar_bytes[place]:
            raise self._fault(shard, "is not as long as its index says", seen=f"{size} bytes", allowed=f"{table.tar_bytes[place]}")
        if self.verify:
            with open(handle, "rb", closefd=False) as file:
                seen = hashlib.file_digest(file, "sha256").hexdigest()
            if seen != (expected := table.tar_sha256[place].tobytes().hex()):
                raise self._fault(shard, "is not what its index says: a byte has changed", seen=f"sha256 {seen}", allowed=expected)
        self._state[shard] = 1

    def _fault(self, shard: int, what: str, *, seen: object = None, allowed: object = None) -> ShardFault:
        self._state[shard] = 2
        fault = ShardFault(f"shard {self.clips.shard_name(shard)}.tar {what}", seen=seen, allowed=allowed, remedy=_REMEDY)
        fault.shard = shard
        return fault

    def bad_shards(self) -> list[int]:
        """Numbers of the shards found bad, by this process or a worker forked from it."""
        return np.flatnonzero(self._state == 2).tolist()

    def close(self) -> None:
        """Closes every shard."""
        while self._open:
            os.close(self._open.popitem()[1])
