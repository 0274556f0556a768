"""Which work is done next, and what follows from a death: decisions only, no Ray, no clock.

A job that dies is done again, alone. A unit that dies oftener than `retries` is searched: halves of its rows are tried (and published
nowhere) until single rows are left; a row that kills twice is poison, and the unit is done without it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from uniaudio.errors import UserError

_POISON_DEATHS = 2  # of a single row: one death may be the machine's


@dataclass(frozen=True)
class Job:
    """Units (by their number in the plan) to publish in one call; or, with `rows` [begin, end), a part of one unit to try.

    alone: a suspect; nothing else may run on its worker meanwhile, lest it be blamed.
    """

    units: tuple[int, ...]
    rows: tuple[int, int] | None = None
    alone: bool = False


class Schedule:
    """The jobs of one farm.

    Args:
        todo: units, in order.
        size, name: rows and shard name of a unit.
    """

    def __init__(self, todo: Sequence[int] | np.ndarray, *, size: Callable[[int], int], name: Callable[[int], str], retries: int) -> None:
        self._todo, self._size, self._name, self._retries = todo, size, name, retries
        self._next = 0
        self._again: deque[Job] = deque()
        self._deaths: dict[int, int] = {}
        self._row_deaths: dict[tuple[int, int], int] = {}
        self._searches: dict[int, int] = {}  # unit -> parts that are still to be tried
        self.poison: dict[int, tuple[int, ...]] = {}

    @property
    def waiting(self) -> int:
        """Units and parts that no worker has yet."""
        return len(self._todo) - self._next + len(self._again)

    def next(self, most: int) -> Job | None:
        """A job of at most `most` units; None where none is waiting."""
        if self._again:
            return self._again.popleft()
        units = tuple(int(unit) for unit in self._todo[self._next : self._next + most])
        self._next += len(units)
        return Job(units) if units else None

    def done(self, job: Job) -> None:
        """The job ended well."""
        if job.rows is not None:
            self._part_ended(job.units[0])

    def failed(self, job: Job) -> bool:
        """A fault of the job's surroundings (a network): it is done again; False where that was tried often enough."""
        again = [self._count(unit) for unit in job.units] if job.rows is None else [self._requeue(job)]
        return all(again)

    def died(self, job: Job, why: str) -> None:
        """The job's worker died.

        Raises:
            UserError: the unit dies although none of its rows does alone.
        """
        if job.rows is not None:
            self._part_died(job)
        elif len(job.units) > 1:
            self._again.extend(Job((unit,), alone=True) for unit in job.units)
        elif not self._count(unit := job.units[0]):
            self._search(unit, why)

    def _count(self, unit: int) -> bool:
        self._deaths[unit] = self._deaths.get(unit, 0) + 1
        if self._deaths[unit] > self._retries:
            return False
        return self._requeue(Job((unit,), alone=True))

    def _requeue(self, job: Job) -> bool:
        self._again.append(job)
        return True

    def _search(self, unit: int, why: str) -> None:
        if unit in self._searches:
            raise UserError(
                f"{self._name(unit)} killed its worker {self._deaths[unit]} times more after a search for the clip that does",
                seen=" ".join(why.split())[:200],
                remedy="give workers more memory (fewer workers, a smaller batch_seconds), then run the same command again",
            )
        self._searches[unit] = 1
        self._again.append(Job((unit,), (0, self._size(unit)), alone=True))

    def _part_died(self, job: Job) -> None:
        unit, (begin, end) = job.units[0], job.rows or (0, 0)
        if end - begin > 1:
            middle = (begin + end) // 2
            self._searches[unit] += 1
            self._again.extend(Job((unit,), rows, alone=True) for rows in ((begin, middle), (middle, end)))
            return
        deaths = self._row_deaths[unit, begin] = self._row_deaths.get((unit, begin), 0) + 1
        if deaths < _POISON_DEATHS:
            self._again.append(job)
            return
        self.poison[unit] = tuple(sorted((*self.poison.get(unit, ()), begin)))
        self._part_ended(unit)

    def _part_ended(self, unit: int) -> None:
        self._searches[unit] -= 1
        if not self._searches[unit]:
            self._deaths[unit] = 0
            self._again.append(Job((unit,), alone=True))
