"""Who is dead, who hangs, who is slow: every rank tells the others that it lives and where it stands, and a thread reads them.

Owns the signs of life and what they mean. They go through the key-value store that the process groups were made with, not through
collectives, so they still arrive when a collective hangs. A rank whose signs stop is dead or frozen: the others name it and end, so that a
scheduler can start again from the last checkpoint. When nobody gets on, those that are behind are named; after `STALLED_SECONDS` all end.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import torch.distributed as dist

from uniaudio.errors import Unavailable
from uniaudio.log import get_logger

BEAT_SECONDS = 2.0
SILENT_SECONDS = 30.0  # without a sign: dead or frozen
WAITING_SECONDS = 30.0  # nobody gets on: said, since a compilation or a slow disk may take that long
STALLED_SECONDS = 900.0  # nobody gets on: given up
SLOW_FACTOR = 1.5  # of the median of all ranks
SLOW_SECONDS = 0.01
_STORE_FAULTS = (dist.DistStoreError, dist.DistNetworkError, RuntimeError)
logger = get_logger("watchdog")


@dataclass
class Sign:
    """What a rank says of itself. progress: counts phases entered. own: seconds a step that it spends without waiting for others."""

    rank: int
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    beat: int = 0
    step: int = 0
    phase: str = "start"
    progress: int = 0
    own: float | None = None

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid}; step {self.step}, {self.phase})"


class Signs:
    """What is known of all ranks, and since when; judged on this process's own clock alone."""

    def __init__(self, now: float) -> None:
        self.known: dict[int, Sign] = {}
        self._heard: dict[int, float] = {}
        self._moved = now

    def update(self, signs: list[Sign], now: float) -> None:
        """Takes the newest signs of all ranks that have given one."""
        for sign in signs:
            before = self.known.get(sign.rank)
            if before is None or before.beat != sign.beat:
                self._heard[sign.rank] = now
            if before is None or before.progress != sign.progress:
                self._moved = now
            self.known[sign.rank] = sign

    def silent(self, now: float) -> list[Sign]:
        """Ranks without a sign for too long."""
        return [sign for rank, sign in self.known.items() if now - self._heard[rank] > SILENT_SECONDS]

    def standing(self, now: float) -> float:
        """Seconds since any rank got on."""
        return now - self._moved

    def behind(self) -> list[Sign]:
        """Those that the others wait for: the least progress; empty where all stand at the same place (a collective that hangs)."""
        least = min(sign.progress for sign in self.known.values())
        late = [sign for sign in self.known.values() if sign.progress == least]
        return late if len(late) < len(self.known) else []

    def slow(self) -> list[tuple[Sign, float]]:
        """Ranks that need much longer than the median for what they do alone, with that median."""
        times = sorted(sign.own for sign in self.known.values() if sign.own is not None)
        if len(times) < 2:
            return []
        median = times[(len(times) - 1) // 2]
        return [
            (sign, median)
            for sign in self.known.values()
            if sign.own is not None and sign.own > SLOW_FACTOR * median and sign.own > median + SLOW_SECONDS
        ]


class Watchdog:
    """The signs of this rank and the thread that reads all. With one rank, or none of a process group, it only keeps its own."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._sign, self._world_size = Sign(rank), world_size
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._told: set[tuple[str, int]] = set()
        self._thread: threading.Thread | None = None
        if world_size > 1:
            store = dist.distributed_c10d._get_default_store().clone()  # a connection of its own: the other one may be blocked
            self._store, self._answered = dist.PrefixStore("watchdog", store), time.monotonic()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
            threading.Thread(target=self._guard, name="watchdog-store", daemon=True).start()

    def enter(self, step: int, phase: str) -> None:
        """This rank begins a phase of a step."""
        with self._lock:
            self._sign.step, self._sign.phase = step, phase
            self._sign.progress += 1

    def tell_own(self, seconds: float) -> None:
        """Seconds a step that this rank needs by itself (reading data, a forward pass without the others)."""
        with self._lock:
            self._sign.own = seconds

    def close(self) -> None:
        """The training ends well: no more signs, no more judgement, on any rank."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()

    # ---- the thread ----

    def _watch(self) -> None:
        signs = Signs(time.monotonic())
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._exchange(signs)
            except _STORE_FAULTS as error:
                if not self._ended.is_set():
                    self._end(f"the store of rank 0 does not answer, so that rank or its host is dead: {str(error).splitlines()[0]}")
            self._judge(signs, time.monotonic())
        with suppress(*_STORE_FAULTS):  # rank 0 may have gone already, and there is nobody left to be told
            self._store.set(str(self._sign.rank), json.dumps({"left": True}))

    def _guard(self) -> None:
        """Beside the thread above, which waits without end where the store's host is frozen."""
        while not self._ended.wait(BEAT_SECONDS):
            if time.monotonic() - self._answered > SILENT_SECONDS:
                self._end(f"the store of rank 0 does not answer for {SILENT_SECONDS:.0f} s, so that rank or its host is dead or frozen")

    def _exchange(self, signs: Signs) -> None:
        with self._lock:
            self._sign.beat += 1
            mine = json.dumps(asdict(self._sign))
        self._store.set(str(self._sign.rank), mine)
        there = [str(rank) for rank in range(self._world_size) if self._store.check([str(rank)])]
        records = [json.loads(value) for value in self._store.multi_get(there)]
        if any("left" in record for record in records):  # it has come to the end, and all others will
            self._ended.set()
            return
        self._answered = time.monotonic()
        signs.update([Sign(**record) for record in records], self._answered)

    def _judge(self, signs: Signs, now: float) -> None:
        if self._ended.is_set():
            return
        if silent := signs.silent(now):
            self._end(f"no sign of life for {SILENT_SECONDS:.0f} s, dead or frozen: " + "; ".join(map(str, silent)))
        standing = signs.standing(now)
        if standing > WAITING_SECONDS:
            late = signs.behind()
            who = "; ".join(map(str, late)) if late else f"all ranks alike, in a collective or a long step: {signs.known[self._sign.rank]}"
            text = (
                f"nobody got on for {WAITING_SECONDS:.0f} s; the others wait for {who}"
                if late
                else f"nobody got on for {WAITING_SECONDS:.0f} s: {who}"
            )
            self._tell(("standing", self._sign.progress), text)
            if standing > STALLED_SECONDS:
                self._end(f"nobody got on for {STALLED_SECONDS:.0f} s; " + who)
        for sign, median in signs.slow():
            self._tell(("slow", sign.rank), f"slow: {sign} needs {sign.own:.3f} s a step by itself, the median rank {median:.3f} s")

    def _tell(self, what: tuple[str, int], text: str) -> None:
        """Once, and on one rank."""
        if what not in self._told:
            self._told.add(what)
            if self._sign.rank == 0:
                logger.warning(text)

    def _end(self, text: str) -> None:
        """The whole process, whatever its other threads wait for."""
        logger.error("%s | this process ends; start again: it resumes from the last checkpoint", text)
        os._exit(Unavailable.exit_code)
