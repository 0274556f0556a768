"""How long the parts of a step take, on the device's own clock, without waiting for it; and traces for the rest."""

import itertools
import time
from pathlib import Path

import torch


class Stopwatch:
    """Adds up the time between marks. On CUDA a mark is an event in the stream; `read`, after the host has waited anyway, looks at them."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []
        self._steps = 0

    def start(self) -> None:
        """A step begins."""
        self._steps += 1
        self.mark("")

    def mark(self, part: str) -> None:
        """What ran since the last mark belongs to `part`."""
        if not self._cuda:
            self._marks.append((part, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((part, event))

    def read(self) -> dict[str, float]:
        """Part -> mean seconds a step since the last reading; waits for the last mark."""
        marks, steps = self._marks, max(1, self._steps)
        self._marks, self._steps = [], 0
        if marks and isinstance(marks[-1][1], torch.cuda.Event):
            marks[-1][1].synchronize()
        sums: dict[str, float] = {}
        for (_, before), (part, now) in itertools.pairwise(marks):
            if part:
                sums[part] = sums.get(part, 0.0) + _seconds(before, now)
        return {part: seconds / steps for part, seconds in sums.items()}


def _seconds(before: "torch.cuda.Event | float", now: "torch.cuda.Event | float") -> float:
    if isinstance(before, float) or isinstance(now, float):
        assert isinstance(before, float) and isinstance(now, float)
        return now - before
    return before.elapsed_time(now) / 1000


def trace(folder: Path, rank: int) -> torch.profiler.profile:
    """A started profiler whose `step` is to be called after each step: three steps after the tenth go to `folder`/rank-00000.json.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    profiler = torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=10, warmup=1, active=3, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(folder / f"rank-{rank:05d}.json.gz")),
    )
    profiler.start()
    return profiler
