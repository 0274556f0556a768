"""The farm's loop on Ray: decode ahead, hand out, collect, and hand out again what a death took with it.

Many small units go in one call, so that the driver's work per unit stays small; a unit that takes long goes alone. With a decoding stage a
unit is decoded by a CPU task, waits in the object store, and goes to a worker when one is free; no more of them wait than keep the workers
busy (back-pressure).

Nothing is waited for without end. Ray may never start a decoding task (nodes went, or another farm came, and workers hold every core): idle
workers then decode for themselves. A worker that answers no more is ended and its units are done again.
"""

import errno
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import Stopped, UserError
from uniaudio.log import get_logger
from uniaudio.signals import stop_requests
from uniaudio.tokenize_farm.output import Output
from uniaudio.tokenize_farm.pool import Pool
from uniaudio.tokenize_farm.schedule import Job, Schedule
from uniaudio.tokenize_farm.summary import Work
from uniaudio.tokenize_farm.units import Plan, WorkUnit
from uniaudio.tokenize_farm.waits import Silence, Waits
from uniaudio.tokenize_farm.worker import UnitResult, decode_unit

logger = get_logger("farm")

Progress = Callable[[Work, int], None]  # (work so far, manifest rows to do in all)
Report = Callable[[Work, UnitResult], None]  # called for every unit that was published; may raise to stop the farm

_CALL_SECONDS = 1.0  # how long a call should take: units are gathered up to it
_MOST_UNITS = 64
_PATIENCE = 60.0  # seconds in which nothing ends before the log says so
_DECODING_SECONDS = 30.0  # without a decoded unit; then idle workers decode for themselves, which costs little where it was too early
_STALLED_SECONDS, _STALLED_TIMES = 3_600.0, 10  # a call is given up after an hour and ten times the longest one so far ...
_FIRST_SECONDS = 6 * 3_600.0  # ... or after this, where none has ended yet
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
    _calls: Waits = field(default_factory=Waits)
    _decodes: Waits = field(default_factory=Waits)
    _silence: Silence = field(default_factory=lambda: Silence(_PATIENCE))
    _decoders_gone: bool = False

    def run(self) -> Work:
        """Until everything is published.

        Raises:
            UserError: a fault that more tries do not mend; what `report` raises.
            Stopped: a signal asked for it (Ray's own handler would abort with a trace).
        """
        with stop_requests() as came:
            return self._run(came)

    def _run(self, came: list[int]) -> Work:
        begin = time.perf_counter()
        self.work.decoders, self.work.calls_at_once = self.pool.decoders, self.pool.calls_at_once
        decode = ray.remote(decode_unit).options(num_cpus=1, max_retries=0) if self.pool.decoders else None
        while self.schedule.waiting or self._running or self._decoding or self._decoded:
            self.pool.grow(self.schedule.waiting + len(self._running) + len(self._decoding) + len(self._decoded))
            if decode:
                self._decode_ahead(decode)
            self._hand_out()
            if not self.schedule.waiting and not self._decoding and not self._decoded:
                self.pool.shrink()
            self._collect()
            if came:
                remedy = "the same command goes on: what is published stays"
                raise Stopped("the farm was asked to stop", seen=signal.Signals(came[0]).name, remedy=remedy)
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
            reference = decode.remote(self.config, self._unit(job.units[0]))
            self._decoding[reference] = job
            self._decodes.begin(reference, self.work.seconds)

    def _hand_out(self) -> None:
        while (actor := self.pool.free()) is not None:
            job, clips = self._decoded.popleft() if self._decoded else (None, None)
            if job is None and (not self.pool.decoders or self._nothing_is_decoded()):
                job = self.schedule.next(self._units_a_call()) or self._take_back()
            if job is None:
                return
            if job.alone and (actor := self.pool.free(alone=True)) is None:
                self._decoded.appendleft((job, clips))
                return
            self.pool.took(actor, alone=job.alone)
            reference = self._call(actor, job, clips)
            self._running[reference] = job, actor
            self._calls.begin(reference, self.work.seconds)

    def _nothing_is_decoded(self) -> bool:
        """Whether the decoding tasks keep the workers waiting for so long that Ray may have no core for them; says so once a time."""
        gone = self._decodes.all_overdue(self.work.seconds, _DECODING_SECONDS)
        if gone and not self._decoders_gone:
            units = self._decodes.described(self._names_decoding(), self.work.seconds)
            logger.warning("nothing was decoded ahead for %.0f s: %s; idle workers decode for themselves", _DECODING_SECONDS, units)
        self._decoders_gone = gone
        return gone

    def _take_back(self) -> Job | None:
        """The unit that waits longest for its decoding, when no other is left; only with a decoding stage."""
        for reference in self._decodes.overdue(self.work.seconds, _DECODING_SECONDS)[:1]:
            ray.cancel(reference)
            self._decodes.give_up(reference)
            return self._decoding.pop(reference)
        return None

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
        ready, rest = ray.wait(references, num_returns=1, timeout=0.5, fetch_local=False)
        ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if ready and rest else []
        now = self.work.seconds
        for reference in ready:
            self._silence.heard(now)
            if reference in self._running:
                self._calls.end(reference, now)
                self._take_in(reference, *self._running.pop(reference))
            elif reference in self._decoding:
                self._decodes.end(reference, now)
                self._decoded.append((self._decoding.pop(reference), reference))
            else:
                self.pool.came_up(reference)
        self._warn_of_silence()
        self._end_stalled()

    def _warn_of_silence(self) -> None:
        """Says what is waited for, and since when."""
        silent = self._silence.broken_by(self.work.seconds, least=3 * self._calls.longest)
        if silent is None:
            return
        if not self.pool.running:
            needs = f"cpus_per_worker {self.config.cpus_per_worker:g}, gpus_per_worker {self.config.gpus_per_worker:g}"
            logger.warning("no worker runs since %.0f s: loading models, or the cluster has no room (%s)", silent, needs)
            return
        names = {reference: f"{self._name(job)} on {self.pool.name(actor)}" for reference, (job, actor) in self._running.items()}
        tokenizing = self._calls.described(names, self.work.seconds) or "nothing"
        decoding = self._decodes.described(self._names_decoding(), self.work.seconds) or "nothing"
        logger.warning("nothing has ended for %.0f s; tokenizing: %s; decoding ahead: %s", silent, tokenizing, decoding)

    def _end_stalled(self) -> None:
        """Ends the workers that do not answer; what they had is done again."""
        longest = self._calls.longest
        limit = max(_STALLED_SECONDS, _STALLED_TIMES * longest) if longest else _FIRST_SECONDS
        for reference in self._calls.overdue(self.work.seconds, limit):
            self._calls.give_up(reference)
            job, actor = self._running.pop(reference)
            why = f"no answer from {self.pool.name(actor)} for {limit:.0f} s"
            self._gone(job, actor, ray.exceptions.RayActorError(error_msg=why))

    def _names_decoding(self) -> dict[Any, str]:
        return {reference: self._name(job) for reference, job in self._decoding.items()}

    def _name(self, job: Job) -> str:
        return self._listed(job.units) + (f" rows {job.rows[0]} to {job.rows[1]}" if job.rows else "")

    def _listed(self, units: tuple[int, ...]) -> str:
        return ", ".join(self.plan.name(unit) for unit in units[:3]) + (f" and {len(units) - 3} more" if len(units) > 3 else "")

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
        logger.warning("the worker of %s died: %s", self._listed(left) or "units already published", " ".join(str(error).split())[:200])
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
