"""The farm's loop on Ray: decode ahead, hand out, collect, and hand out again what a death took with it.

Many small units go in one call, so that the driver's work per unit stays small; a unit that takes long goes alone. With a decoding stage a
unit is decoded by a CPU task, waits in the object store, and goes to a worker when one is free; no more of them wait than keep the workers
busy (back-pressure).
"""

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.output import Output
from uniaudio.tokenize_farm.pool import Pool
from uniaudio.tokenize_farm.schedule import Job, Schedule
from uniaudio.tokenize_farm.summary import Work
from uniaudio.tokenize_farm.units import Plan, WorkUnit
from uniaudio.tokenize_farm.worker import UnitResult, decode_unit

logger = get_logger("farm")

Progress = Callable[[Work, int], None]  # (work so far, manifest rows to do in all)
Report = Callable[[Work, UnitResult], None]  # called for every unit that was published; may raise to stop the farm

_CALL_SECONDS = 1.0  # how long a call should take: units are gathered up to it
_MOST_UNITS = 64
_PATIENCE = 60.0  # seconds without a worker before the log says so
# whatever says that a process or a node is gone and its unit must be done again
_GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
)
_HERE_TO_STAY = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EFBIG)  # trying again is in vain


@dataclass
class Flow:
    """One invocation's work.

    Args:
        report: sees every published unit.
    """

    config: FarmConfig
    plan: Plan
    pool: Pool
    output: Output
    schedule: Schedule
    report: Report
    progress: Progress | None = None
    rows: int = 0
    work: Work = field(default_factory=Work)
    _running: dict[Any, tuple[Job, Any]] = field(default_factory=dict)  # reference -> job, actor
    _decoding: dict[Any, Job] = field(default_factory=dict)
    _decoded: deque[tuple[Job, Any]] = field(default_factory=deque)  # job, reference of its clips
    _warn_at: float = 0.0

    def run(self) -> Work:
        """Until everything is published.

        Raises:
            UserError: a fault that more tries do not mend; what `report` raises.
        """
        begin = time.perf_counter()
        self.work.decoders = self.pool.decoders
        decode = ray.remote(decode_unit).options(num_cpus=1, max_retries=0) if self.pool.decoders else None
        while self.schedule.waiting or self._running or self._decoding or self._decoded:
            self.pool.grow(self.schedule.waiting + len(self._running) + len(self._decoding) + len(self._decoded))
            if decode:
                self._decode_ahead(decode)
            self._hand_out()
            if not self.schedule.waiting and not self._decoding and not self._decoded:
                self.pool.shrink()
            self._collect()
            self.work.seconds = time.perf_counter() - begin
            self.work.restarts, self.work.workers = self.pool.restarts, max(self.work.workers, self.pool.running)
            if self.progress:
                self.progress(self.work, self.rows)
        return self.work

    def _unit(self, number: int) -> WorkUnit:
        unit = self.plan[number]
        poison = self.schedule.poison.get(number)
        return replace(unit, poison=poison) if poison else unit

    def _decode_ahead(self, decode: Any) -> None:
        """Keeps every decoder busy, and no more decoded units than the workers take next."""
        most = self.pool.decoders + 2 * self.pool.most
        while len(self._decoding) < self.pool.decoders and len(self._decoding) + len(self._decoded) < most:
            job = self.schedule.next(1)
            if job is None:
                return
            if job.rows is not None:
                self._decoded.append((job, None))
                continue
            self._decoding[decode.remote(self.config, self._unit(job.units[0]))] = job

    def _hand_out(self) -> None:
        while (actor := self.pool.free()) is not None:
            job, clips = self._decoded.popleft() if self._decoded else (None, None)
            if job is None and not self.pool.decoders:
                job = self.schedule.next(self._units_a_call())
            if job is None:
                return
            if job.alone and (actor := self.pool.free(alone=True)) is None:
                self._decoded.appendleft((job, clips))
                return
            self.pool.took(actor, alone=job.alone)
            self._running[self._call(actor, job, clips)] = job, actor

    def _call(self, actor: Any, job: Job, clips: Any) -> Any:
        if job.rows is not None:
            return actor.probe.remote(self._unit(job.units[0]), *job.rows)
        if clips is not None:
            return actor.run.remote(self._unit(job.units[0]), clips)
        return actor.run_many.remote([self._unit(unit) for unit in job.units])

    def _units_a_call(self) -> int:
        """As many units as take about a second, and at the end few enough for every worker to have some."""
        busy = sum(self.work.seconds_by_step.values())
        if not self.work.units or not busy:
            return 1
        share = -(-self.schedule.waiting // (2 * max(1, self.pool.running)))
        return max(1, min(_MOST_UNITS, int(_CALL_SECONDS * self.work.units / busy), share))

    def _collect(self) -> None:
        """Waits for something to happen, and takes in all that has."""
        references = [*self._running, *self._decoding, *self.pool.starting]
        if not self.pool.running:
            self._warn_of_no_room()
        ready, rest = ray.wait(references, num_returns=1, timeout=0.5, fetch_local=False)
        ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if ready and rest else []
        for reference in ready:
            if reference in self._running:
                self._take_in(reference, *self._running.pop(reference))
            elif reference in self._decoding:
                self._decoded.append((self._decoding.pop(reference), reference))
            else:
                self.pool.came_up(reference)

    def _warn_of_no_room(self) -> None:
        if self.work.seconds >= self._warn_at:
            self._warn_at = self.work.seconds + _PATIENCE
            if self.work.seconds >= _PATIENCE:
                needs = f"cpus_per_worker {self.config.cpus_per_worker:g}, gpus_per_worker {self.config.gpus_per_worker:g}"
                logger.warning("no worker runs since %.0f s: loading models, or the cluster has no room (%s)", self.work.seconds, needs)

    def _take_in(self, reference: Any, job: Job, actor: Any) -> None:
        try:
            results = ray.get(reference)
        except _GONE as error:
            self._gone(job, actor, error)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, _GONE):  # of the task that decoded for it
                self._gone(job, actor, error.cause)
            else:
                self.pool.ended(actor)
                self._failed(job, error)
        else:
            self.pool.ended(actor)
            self.schedule.done(job)
            for result in [] if results is None else [results] if isinstance(results, UnitResult) else results:
                self._count(result)

    def _count(self, result: UnitResult) -> None:
        self.work.add(result.sidecar, result.seconds_by_step)
        self.report(self.work, result)

    def _gone(self, job: Job, actor: Any, error: Exception) -> None:
        self.pool.ended(actor)
        if isinstance(error, ray.exceptions.RayActorError):
            self.pool.died(actor)
        left = tuple(unit for unit in job.units if job.rows is not None or not self._published(unit))
        names = ", ".join(self.plan.name(unit) for unit in left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        logger.warning("the worker of %s died: %s", names or "units already published", " ".join(str(error).split())[:200])
        if left:
            self.schedule.died(replace(job, units=left), str(error))
            if job.rows and job.rows[0] in self.schedule.poison.get(job.units[0], ()):
                unit = self.plan[job.units[0]]
                logger.warning("%s: clip %s kills its worker and is dropped", unit.name, unit.rows[job.rows[0]].id)

    def _published(self, number: int) -> bool:
        """Whether a unit of a call that died was published before, and counts it then."""
        sidecar = self.output.sidecar(*self.plan.place(number))
        if sidecar is None or sidecar.get("fingerprint") != self.plan.fingerprint(number):
            return False
        self._count(UnitResult(self.plan.name(number), sidecar))
        return True

    def _failed(self, job: Job, error: ray.exceptions.RayTaskError) -> None:
        """Another try for a fault of the surroundings; else the worker's own exception: a user fault as such, anything else as it is."""
        cause, name = error.cause, self.plan.name(job.units[0])
        if isinstance(cause, UserError):
            raise cause
        if not isinstance(cause, OSError):
            raise error
        left = tuple(unit for unit in job.units if job.rows is not None or not self._published(unit))
        if cause.errno in _HERE_TO_STAY or (left and not self.schedule.failed(replace(job, units=left))):
            remedy = "free space or correct the folder's rights, then run the same command again; it goes on where it stopped"
            raise UserError(f"{name} could not be written", seen=cause, remedy=remedy) from error
        logger.warning("%s is tried again: %s", name, " ".join(str(cause).split())[:200])


@contextmanager
def ray_workers(config: FarmConfig, versions: dict[str, str], *, jobs: int, kind: type) -> Iterator[Pool]:
    """A pool that is closed at the end, whatever happens."""
    pool = Pool(config, versions, jobs=jobs, kind=kind)
    try:
        yield pool
    finally:
        pool.close()
