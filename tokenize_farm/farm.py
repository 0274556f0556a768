"""The farm's driver: hands work units to Ray actors, replaces workers that die, and sums up. Loads no model and opens no recording.

A unit is done when its sidecar is published with the unit's fingerprint; everything else is worked out again at every start, so a farm
that was killed anywhere is continued by the same command.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import Unavailable, UserError
from uniaudio.lock import only_writer
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.index import ShardPaths, list_shards
from uniaudio.tokenize_farm.manifest import read_manifest
from uniaudio.tokenize_farm.parts import WHOLE, Part
from uniaudio.tokenize_farm.simulate.simulator import Simulator
from uniaudio.tokenize_farm.summary import Work, read_farm_file, total, write_farm_file
from uniaudio.tokenize_farm.tracking import Tracker
from uniaudio.tokenize_farm.units import WorkUnit, plan_units
from uniaudio.tokenize_farm.worker import UnitResult, UnitWorker, make_tokenizers, tokenizer_versions

logger = get_logger("farm")
_OBJECT_STORE_BYTES = 128 * 2**20  # nothing but rows and sidecars crosses it

Progress = Callable[[Work, int], None]  # (work so far, manifest rows to do in all)
# whatever says that the worker is gone and its unit must be done again
_WORKER_GONE = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)


def run_farm(config: FarmConfig, *, replace: bool = False, progress: Progress | None = None) -> dict:
    """Makes every shard that is missing and returns the content of `farm.json`.

    Args:
        replace: make shards again that were made of other rows or by other tokenizers; without it they are an error.

    Raises:
        UserError: a fault of config, manifest or tokenizer; a unit whose worker died too often; more dropped clips than
            `max_dropped_fraction` (the shards are published all the same); a full disk; a second farm in the same folder.
    """
    versions = tokenizer_versions(make_tokenizers(config)) | Simulator(config).versions()
    units = plan_units(read_manifest(config.manifest), config, versions)
    output_dir, part = Path(config.output_dir), Part.of(config)
    with _only_driver_of(output_dir, part):
        todo = part.own(_missing_units(units, output_dir, replace=replace))
        before = read_farm_file(output_dir, part.farm_file)
        workers = _Workers(config, versions, units=len(todo)) if todo else None
        try:
            tracker = Tracker(config, run_id=before.get("run_id"))  # while the workers load their models
            head: dict[str, Any] = {
                "run_id": tracker.run_id,
                "experiment": config.experiment,
                "manifest": config.manifest,
                "tokenizers": versions,
                "tokenizer_configs": {view: tokenizer.model_dump(mode="json") for view, tokenizer in config.tokenizers.items()},
            }
            write_farm_file(output_dir, before | head | {"status": "running"}, part.farm_file)
            with _closing_on_error(tracker):
                work = _Run(config, workers, tracker, progress).run(todo) if workers else Work()
        finally:
            if workers:
                workers.close()
        work.units_skipped = len(part.own(units)) - len(todo)
        content = _finish(config, head, before, work, tracker)
        if part.count > 1 and len(shards := list_shards(output_dir)) == len(units):  # the last part sums up for all
            write_farm_file(output_dir, {**content, "totals": total(shard.read_sidecar() for shard in shards)})
        return content


@contextmanager
def _closing_on_error(tracker: Tracker) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        tracker.finish("KILLED", {})
        raise
    except UserError:
        tracker.finish("FAILED", {})
        raise


def _finish(config: FarmConfig, head: dict, before: dict, work: Work, tracker: Tracker) -> dict:
    """Sums up, publishes `farm.json` (a part: its own), closes the MLflow run, and holds the result against the failure budget."""
    output_dir, part = Path(config.output_dir), Part.of(config)
    own = [shard for shard in list_shards(output_dir) if part.has(shard.unit)]
    totals = total(shard.read_sidecar() for shard in own)
    drops = len(totals["dropped"])
    share = drops / max(1, drops + totals["clips"])
    over = share > config.max_dropped_fraction
    last_work = work.as_json() if work.units else before.get("last_work", work.as_json())
    content = {**head, "status": "failed" if over else "finished", "totals": totals, "last_work": last_work}
    text = write_farm_file(output_dir, content, part.farm_file)
    numbers = {key: totals[key] for key in ("clips", "audio_seconds", "frames", "shards")} | {"dropped": drops}
    if work.units:
        numbers |= {key: work.as_json()[key] for key in ("times_real_time", "clips_per_second", "seconds")}
    tracker.log(len(own), numbers | {f"dropped.{reason}": n for reason, n in totals["dropped_by_reason"].items()})
    tracker.finish("FAILED" if over else "FINISHED", {"farm.json": text})
    if over:
        reasons = ", ".join(f"{reason} {n}" for reason, n in totals["dropped_by_reason"].items())
        remedy = f"see {output_dir / part.farm_file}; correct the recordings, or raise max_dropped_fraction"
        allowed = f"max_dropped_fraction {config.max_dropped_fraction:g}"
        raise UserError(
            f"dropped {drops} of {drops + totals['clips']} clips ({reasons})", seen=f"{share:.3f}", allowed=allowed, remedy=remedy
        )
    return content


@contextmanager
def _only_driver_of(output_dir: Path, part: Part = WHOLE) -> Iterator[None]:
    """Locks the folder against a second driver, and removes what a killed one left half-written.

    Parts share the folder: each locks its own file, and nobody cleans up, as a temporary file may be another part's.
    """
    alone = part.count == 1
    with (
        only_writer(output_dir, what="farm", key="output_dir", name=part.lock_file, patience=1.0),
        only_writer(output_dir, what="farm", key="output_dir", name=".farm.lock", shared=not alone, patience=1.0),
    ):
        for left_over in output_dir.glob(".*.tmp") if alone else []:
            left_over.unlink(missing_ok=True)
        yield


def _missing_units(units: list[WorkUnit], output_dir: Path, *, replace: bool) -> list[WorkUnit]:
    """Units without their shard, in order. Shards of other units are an error, or with `replace` unpublished."""
    wanted = {unit.name: unit for unit in units}
    done, foreign = set(), []
    for shard in list_shards(output_dir):
        unit = wanted.get(shard.name)
        if unit and shard.read_sidecar().get("fingerprint") == unit.fingerprint:
            done.add(unit.name)
        else:
            foreign.append(shard)
    if foreign and not replace:
        raise UserError(
            f"{output_dir} holds shards of another manifest, other filters or other tokenizers",
            seen=", ".join(shard.name for shard in foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""),
            remedy="give another output_dir, or --replace to make these shards again",
        )
    for shard in foreign:
        _remove(shard)
    return [unit for unit in units if unit.name not in done]


def _remove(shard: ShardPaths) -> None:
    for path in (shard.sidecar, shard.index, shard.tar):  # the sidecar first: without it the shard does not exist
        path.unlink(missing_ok=True)


class _Workers:
    """The Ray actors, and Ray itself where no address of a running cluster is given."""

    def __init__(self, config: FarmConfig, versions: dict[str, str], *, units: int) -> None:
        self._config, self._versions = config, versions
        if config.ray_address:
            try:
                ray.init(address=config.ray_address, log_to_driver=False, logging_level="ERROR")
            except ConnectionError as error:
                remedy = "start a cluster, or leave ray_address out"
                raise Unavailable("no Ray cluster at this address", seen=config.ray_address, remedy=remedy) from error
            cores = int(ray.cluster_resources().get("CPU", 0))
        else:
            cores = len(os.sched_getaffinity(0))
        self.count = max(1, min(units, config.workers or int(cores / config.cpus_per_worker)))
        if not config.ray_address:
            ray.init(
                address="local",
                num_cpus=ceil(self.count * config.cpus_per_worker),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
            )
        kind = ray.remote(UnitWorker)
        self._kind = kind.options(num_cpus=config.cpus_per_worker, num_gpus=config.gpus_per_worker, max_restarts=0)
        self.restarts = 0
        self.idle = [self._start() for _ in range(self.count)]

    def _start(self) -> Any:
        return self._kind.remote(self._config, self._versions)

    def replace(self, gone: Any) -> Any:
        """A fresh worker in the place of one that died, or that can no longer be reached."""
        ray.kill(gone)
        self.restarts += 1
        return self._start()

    def close(self) -> None:
        """Ends the workers; on a shared cluster, them alone."""
        ray.shutdown()


@dataclass
class _Run:
    """The loop over units: hand out, collect, hand out again what a dying worker took with it."""

    config: FarmConfig
    workers: _Workers
    tracker: Tracker
    progress: Progress | None
    work: Work = field(default_factory=Work)
    attempts: dict[str, int] = field(default_factory=dict)

    def run(self, todo: list[WorkUnit]) -> Work:
        begin, rows = time.perf_counter(), sum(len(unit.rows) for unit in todo)
        waiting = deque(todo)
        running: dict[Any, tuple[WorkUnit, Any]] = {}
        self.work.workers = self.workers.count
        while waiting or running:
            while waiting and self.workers.idle:
                unit, actor = waiting.popleft(), self.workers.idle.pop()
                running[actor.run.remote(unit)] = unit, actor
            ready, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
            for reference in ready:
                unit, actor = running.pop(reference)
                if self._collect(reference, unit):
                    self.workers.idle.append(actor)
                else:
                    waiting.append(unit)
                    self.workers.idle.append(self.workers.replace(actor))
            self.work.seconds = time.perf_counter() - begin
            self.work.restarts = self.workers.restarts
            if self.progress:
                self.progress(self.work, rows)
        return self.work

    def _collect(self, reference: Any, unit: WorkUnit) -> bool:
        """Counts a finished unit; False where its worker died and the unit must be done again."""
        try:
            result: UnitResult = ray.get(reference)
        except _WORKER_GONE as error:
            if getattr(error, "actor_init_failed", False):
                raise UserError("a worker could not start", seen=str(error).strip().splitlines()[-1]) from error
            self._count_death(unit, str(error))
            return False
        except ray.exceptions.RayTaskError as error:
            raise _plain(error, unit) from error
        self.work.add(result.sidecar, result.seconds_by_step)
        if self.work.units % 16 == 0:
            self.tracker.log(self.work.units, {"times_real_time": self.work.audio_seconds / max(self.work.seconds, 1e-9)})
            self.tracker.flush()
        return True

    def _count_death(self, unit: WorkUnit, why: str) -> None:
        self.attempts[unit.name] = tries = self.attempts.get(unit.name, 0) + 1
        logger.warning("the worker of %s died (time %d): %s", unit.name, tries, " ".join(why.split())[:200])
        if tries > self.config.retries:
            clips = ", ".join(row.id for row in unit.rows[:3])
            remedy = "look for a recording that kills its decoder, or for too little memory; then run the same command again"
            allowed = f"retries {self.config.retries}"
            raise UserError(f"{unit.name} killed its worker {tries} times (clips {clips}, ...)", allowed=allowed, remedy=remedy)


def _plain(error: ray.exceptions.RayTaskError, unit: WorkUnit) -> Exception:
    """The worker's own exception: a user fault as such, a full disk as a user fault, anything else as it is."""
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, OSError):
        remedy = "free space or correct the folder's rights, then run the same command again; it goes on where it stopped"
        return UserError(f"{unit.name} could not be written", seen=cause, remedy=remedy)
    return error
