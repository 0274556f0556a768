"""Asking long work to stop: SIGTERM and SIGUSR1 (Slurm's, before the limit) are noted, and the work ends where nothing is lost."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def ignore_to_the_end() -> None:
    """A command's work is over and its exit code settled: a signal to the interpreter that winds up, for seconds, does not change it.

    By the system: the interpreter takes back handlers of Python's long before the process is gone. Not for what libraries call.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


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
