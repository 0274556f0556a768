"""Wall seconds by step: what a farm's speeds are worked out from. No published byte depends on them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up wall seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Counts seconds that were measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class SharedTime:
    """Wall seconds that overlapping spans of several threads take together: none is counted twice."""

    def __init__(self) -> None:
        self._counted_until = 0.0
        self._lock = threading.Lock()

    def since(self, begin: float) -> float:
        """Seconds from `begin` (`time.perf_counter`) until now, less what an earlier call has counted."""
        with self._lock:
            now = time.perf_counter()
            seconds = now - max(begin, self._counted_until)
            self._counted_until = now
            return seconds
