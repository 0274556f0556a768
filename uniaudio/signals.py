"""Asking long work to stop: SIGTERM and SIGUSR1 (Slurm's, before the limit) are noted, and the work ends where nothing is lost."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """The signals among SIGTERM and SIGUSR1 that have come, in a list that fills by itself. In the main thread alone."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
