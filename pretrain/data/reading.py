"""Bytes of shards by number: opens each, checks it against its hash once, says which cannot be used. Knows no view and no task."""

import hashlib
import math
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np

from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.data.clips import ClipTable
from uniaudio.pretrain.data.remote import Remote
from uniaudio.tokenize_farm.index_table import IndexTable

logger = get_logger(__name__)
OPEN_SHARDS = 128
_FETCHERS = 8  # ranges on their way at once
_USED_SECONDS = 20.0  # how often the cache is told that a shard is in use
_REMEDY = "run `uniaudio shards verify` on its folder; delete that shard's three files, run the farm again, then `uniaudio shards index`"


class ShardFault(UserError):
    """A shard that is missing, cut short or changed; `shard` is its number."""

    shard: int = -1


class ShardFiles:
    """The tars of a split, opened when first read; the last OPEN_SHARDS stay open.

    verify: hash each shard once a loader (its workers share what was found) and compare with the index.
    A shard once found bad stays bad: every later read of it fails at once, in every worker.
    """

    def __init__(self, clips: ClipTable, *, verify: bool, remotes: Mapping[str, Remote] = MappingProxyType({})) -> None:
        self.clips, self.verify = clips, verify
        self._remotes = {str(remote.folder): remote for remote in remotes.values()}
        self._coming: dict[int, Future[Path]] = {}
        self._used: dict[int, float] = {}
        self._fetchers = ThreadPoolExecutor(_FETCHERS) if remotes else None
        self._open: OrderedDict[int, int] = OrderedDict()
        shared = mmap.mmap(-1, max(1, clips.num_shards))  # with workers forked later: 0 unknown, 1 good, 2 bad
        self._state = np.frombuffer(shared, np.uint8)
        self._faults: dict[int, ShardFault] = {}  # those that this process found
        self._lock = threading.Lock()

    def prefetch(self, shards: np.ndarray) -> None:
        """Begins to fetch remote shards that a coming block needs. Not for workers."""
        for shard in shards.tolist() if self._fetchers else ():
            self._fetch(shard)

    def prepare(self, shards: np.ndarray) -> None:
        """Waits until the remote ones among `shards` are files of this host, and keeps them from being evicted. Not for workers.

        A shard that cannot be fetched counts as bad: whoever reads it gets the fault.
        """
        for shard in np.unique(shards).tolist() if self._fetchers else ():
            if time.monotonic() < self._used.get(shard, -math.inf) + _USED_SECONDS or self._state[shard] == 2:
                continue
            try:
                if (coming := self._fetch(shard)) is not None:
                    coming.result()
                self._used[shard] = time.monotonic()
            except OSError as error:
                logger.warning("%s", self._fault(shard, "cannot be fetched", seen=error))
            self._coming.pop(shard, None)

    def _fetch(self, shard: int) -> "Future[Path] | None":
        with self._lock:
            table, place = self.clips.table_of(shard)
            remote = self._remotes.get(table.directory)
            if remote is None or self._fetchers is None:
                return None
            if shard not in self._coming:
                name = f"{table.shard_name(place)}.tar"
                self._coming[shard] = self._fetchers.submit(remote.fetch, name, int(table.tar_bytes[place]), _hex(table, place))
            return self._coming[shard]

    @property
    def repeated(self) -> int:
        """Ranges that a store had to be asked for again."""
        return sum(remote.repeated for remote in self._remotes.values())

    def read_pieces(
        self, shards: list[int], offsets: list[int], starts: list[int], stops: list[int], target: memoryview
    ) -> dict[int, ShardFault]:
        """Fills bytes start..stop - 1 of `target` for each piece, from its shard's tar at `offset`; the faults by number of the piece."""
        faults: dict[int, ShardFault] = {}
        opened, read = self._open.get, os.preadv
        for number, (shard, offset, start, stop) in enumerate(zip(shards, offsets, starts, stops)):
            handle, part = opened(shard), target[start:stop]
            if handle is None or read(handle, [part], offset) < stop - start:  # seldom: the long way opens it, and says what is wrong
                try:
                    self.read_into(shard, offset, part)
                except ShardFault as fault:
                    faults[number] = fault
        return faults

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
            raise self._faults.get(shard) or self._fault(shard, "cannot be used: see above", seen=path)
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
            if seen != (expected := _hex(table, place)):
                raise self._fault(shard, "is not what its index says: a byte has changed", seen=f"sha256 {seen}", allowed=expected)
        self._state[shard] = 1

    def _fault(self, shard: int, what: str, *, seen: object = None, allowed: object = None) -> ShardFault:
        self._state[shard] = 2
        fault = ShardFault(f"shard {self.clips.shard_name(shard)}.tar {what}", seen=seen, allowed=allowed, remedy=_REMEDY)
        fault.shard = shard
        self._faults[shard] = fault
        return fault

    def bad_shards(self) -> list[int]:
        """Numbers of the shards found bad, by this process or a worker forked from it."""
        return np.flatnonzero(self._state == 2).tolist()

    def close(self) -> None:
        """Closes every shard, and fetches no more."""
        if self._fetchers:
            self._fetchers.shutdown(wait=True, cancel_futures=True)
        while self._open:
            os.close(self._open.popitem()[1])


def _hex(table: IndexTable, shard: int) -> str:
    return table.tar_sha256[shard].tobytes().hex()
