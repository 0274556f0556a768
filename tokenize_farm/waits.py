"""What the farm waits for, since when, and when that is too long: decisions only, no Ray, no clock of its own (seconds come as `now`)."""

from dataclasses import dataclass, field
from typing import Any

_NAMED = 4  # of those waited for, in a message


@dataclass
class Waits:
    """Calls (by any hashable reference) that were begun and have not ended."""

    longest: float = 0.0  # seconds that one took which ended
    _since: dict[Any, float] = field(default_factory=dict)

    def begin(self, reference: Any, now: float) -> None:
        """`reference` is waited for from now on."""
        self._since[reference] = now

    def end(self, reference: Any, now: float) -> None:
        """It came back."""
        self.longest = max(self.longest, now - self._since.pop(reference))

    def give_up(self, reference: Any) -> None:
        """It is waited for no longer; how long it took says nothing of the others."""
        del self._since[reference]

    def overdue(self, now: float, limit: float) -> list[Any]:
        """Those begun `limit` seconds ago or before, the oldest first."""
        return [reference for reference, since in self._oldest_first() if now - since >= limit]

    def all_overdue(self, now: float, limit: float) -> bool:
        """Whether something is waited for and none of it was begun within `limit` seconds."""
        return bool(self._since) and len(self.overdue(now, limit)) == len(self._since)

    def described(self, names: dict[Any, str], now: float) -> str:
        """`train-000005 on host pid 17 (62 s), ... and 3 more`; the oldest first."""
        said = [f"{names[reference]} ({now - since:.0f} s)" for reference, since in self._oldest_first()]
        return ", ".join(said[:_NAMED]) + (f" and {len(said) - _NAMED} more" if len(said) > _NAMED else "")

    def _oldest_first(self) -> list[tuple[Any, float]]:
        return sorted(self._since.items(), key=lambda item: item[1])


@dataclass
class Silence:
    """When to say that nothing happens: after `patience` seconds, and again whenever that has doubled."""

    patience: float
    _heard_at: float = 0.0
    _next: float = 0.0

    def heard(self, now: float) -> None:
        """Something happened."""
        self._heard_at, self._next = now, 0.0

    def broken_by(self, now: float, least: float = 0.0) -> float | None:
        """Seconds of silence where it is time to say so; `least`: so long may pass anyhow."""
        silent = now - self._heard_at
        if silent < max(self.patience, least, self._next):
            return None
        self._next = 2 * silent
        return silent
