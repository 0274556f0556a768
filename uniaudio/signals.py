"""Asking long work to stop: the signals are noted, and the work ends where nothing is lost."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


def _heeded(number: signal.Signals) -> tuple[signal.Signals, ...]:
    """None where whoever started this process set it aside: `nohup` SIGHUP, a shell the SIGINT of what a script runs in the background."""
    return () if signal.getsignal(number) is signal.SIG_IGN else (number,)


# SIGUSR1: Slurm's, before the limit. SIGHUP: the terminal is gone.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, *_heeded(signal.SIGHUP))
WITH_CTRL_C = (*SIGNALS, *_heeded(signal.SIGINT))


def ignore_to_the_end() -> None:
    """A command's work is over and its exit code settled: a signal to the interpreter that winds up, for seconds, does not change it.

    By the system: the interpreter takes back handlers of Python's long before the process is gone. Not for what libraries call.
    """
    for number in WITH_CTRL_C:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_requests(numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[list[int]]:
    """The signals of these that have come, in a list that fills by itself. In the main thread alone."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
