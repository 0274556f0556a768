"""What the targets share: the state of a job in words that are the same everywhere, and output that is a file.

A target is a module with `status(record)`, `output(record, start)` and `cancel(record)`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["queued", "running", "done", "failed", "cancelled", "unknown"]


@dataclass(frozen=True)
class Status:
    """`detail` is what the scheduler itself says."""

    state: State
    detail: str


ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled", "unknown"})


def read_output(path: str, start: int) -> bytes:
    """What an output file holds from byte `start` on; nothing where the job has not begun."""
    file = Path(path)
    if not file.exists():
        return b""
    with file.open("rb") as handle:
        handle.seek(start)
        return handle.read()
