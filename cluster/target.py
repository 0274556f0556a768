"""What every place to run at offers, and the state of a job in words that are the same for all of them."""

from dataclasses import dataclass
from typing import Literal

State = Literal["queued", "running", "done", "failed", "cancelled", "unknown"]


@dataclass(frozen=True)
class Status:
    """`detail` is what the scheduler itself says."""

    state: State
    detail: str


ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled", "unknown"})
