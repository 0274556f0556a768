"""A signal before the first step: nothing can be lost yet, so the process says so in one line and ends at once.

The start takes seconds to minutes, most of them in imports and in calls that wait for other ranks, where Python's own handlers do not get
their turn. So a thread reads what the interpreter notes of every signal (`signal.set_wakeup_fd`).
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from uniaudio.log import get_logger
from uniaudio.signals import WITH_CTRL_C

SAVED = 75  # exit code where a signal ended a training and nothing is lost: sysexits.h EX_TEMPFAIL, schedulers queue the job again
_DONE = 0  # what ends the thread; no signal has this number


@contextmanager
def stop_at_once() -> Iterator[Callable[[], None]]:
    """A signal that asks to stop ends this process until the function that is given is called; from then on they are others' to handle, and
    ignored where these have given them back: the training is over and the process about to end. In the main thread alone.
    """
    over = False
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def ignore(number: int, frame: FrameType | None) -> None:
        """A handler of Python's must be there, or the interpreter notes nothing."""

    def watch() -> None:
        while (number := os.read(reader, 1)[0]) != _DONE:
            if number in WITH_CTRL_C and not over:
                say_nothing_trained()
                os._exit(SAVED)

    def give_up() -> None:
        nonlocal over
        over = True

    previous = {number: signal.signal(number, ignore) for number in WITH_CTRL_C}
    noted = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="stop at once", daemon=True)
    thread.start()
    try:
        yield give_up
    finally:
        signal.set_wakeup_fd(noted)
        for number, handler in previous.items():
            if signal.getsignal(number) is ignore:  # not where a command has settled how it ends (`ignore_to_the_end`)
                signal.signal(number, handler)
        os.write(writer, bytes([_DONE]))
        thread.join()
        os.close(reader)
        os.close(writer)


def say_nothing_trained() -> None:
    """The one line; of several ranks the first says it."""
    level = logging.INFO if int(os.environ.get("RANK", "0")) else logging.WARNING
    get_logger("train").log(
        level,
        "asked to stop before the first step: nothing was trained, and checkpoints are as they were; the same command starts again "
        "(exit code %d)",
        SAVED,
    )
