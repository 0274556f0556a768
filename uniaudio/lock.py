"""One writer a folder: a file lock that the kernel gives back when its holder dies, however it dies."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from uniaudio.errors import Unavailable, UserError
from uniaudio.log import get_logger

# A killed process may leave children that hold its lock for some seconds (workers of a loader look for their parent every five).
PATIENCE_SECONDS = 10.0
logger = get_logger("lock")


@contextmanager
def only_writer(
    folder: Path, *, what: str, key: str, name: str = ".lock", shared: bool = False, patience: float = PATIENCE_SECONDS
) -> Iterator[None]:
    """Holds `folder` (made where it is missing) for this process until the block ends.

    Args:
        what: who writes, as the message names it: "training", "farm".
        key: the config key of the folder, for the remedy.
        name: of the lock file in it.
        shared: beside others that hold it shared, against those that want it alone.
        patience: seconds to wait for a holder that is about to end.

    Raises:
        Unavailable: another process holds it, named by host and process number. (A file server gives back the lock of a node that died
            only after a minute or two: a scheduler queues the job again.)
        UserError: the folder cannot be made or written.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{key} cannot be written", seen=error, remedy=f"give another {key}, or correct the folder's rights") from error
    with handle:
        if not _acquire(handle.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience):
            holder = path.read_text(encoding="utf-8").strip() or "another process"
            raise Unavailable(
                f"another {what} is writing into this folder", seen=f"{folder} ({holder})", remedy=f"wait for it, or give another {key}"
            )
        with suppress(OSError):  # a full disk: the name is for the message above alone
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def _acquire(descriptor: int, mode: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        except OSError as error:
            logger.warning("this file system has no locks (%s): nothing keeps a second writer out", error.strerror)
            return True
        time.sleep(0.1)
