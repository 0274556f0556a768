"""A farm from start to end: plan, find what is missing, let it be made, sum up. Loads no model and opens no recording.

A unit is done when its sidecar is published with the unit's fingerprint; everything else is worked out again at every start, so a farm
that was killed anywhere is continued by the same command.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import Stopped, UserError
from uniaudio.tokenize_farm.output import Output, Shard, open_output
from uniaudio.tokenize_farm.parts import Part
from uniaudio.tokenize_farm.schedule import Schedule
from uniaudio.tokenize_farm.schema import shard_name
from uniaudio.tokenize_farm.simulate.simulator import Simulator
from uniaudio.tokenize_farm.sources import open_source
from uniaudio.tokenize_farm.summary import Totals, Work, read_farm_file, total, write_farm_file
from uniaudio.tokenize_farm.tracking import Tracker
from uniaudio.tokenize_farm.units import Plan
from uniaudio.tokenize_farm.worker import UnitResult, UnitWorker, make_tokenizers, tokenizer_versions

if TYPE_CHECKING:
    from uniaudio.tokenize_farm.flow import Progress

_LOG_SECONDS = 10.0
_READERS, _READ_AHEAD = 32, 1_000  # sidecars read at once, and held
_BUDGET_ROWS = 1_000  # before so many, a few bad clips say nothing of the corpus


def run_farm(config: FarmConfig, *, replace: bool = False, progress: "Progress | None" = None, worker: type = UnitWorker) -> dict:
    """Makes every shard that is missing and returns the content of `farm.json`.

    Args:
        replace: make shards again that were made of other rows or by other tokenizers; without it they are an error.
        worker: the class of the actors.

    Raises:
        UserError: a fault of config, manifest or tokenizer; a unit that dies again and again; more dropped clips than
            `max_dropped_fraction` (the shards are published all the same); a full disk; a second farm in the same folder.
        Stopped: SIGTERM or SIGUSR1 came.
    """
    versions = tokenizer_versions(make_tokenizers(config)) | Simulator(config).versions()
    output, part = open_output(config.output_dir), Part.of(config)
    with open_source(config.manifest) as source:
        plan = Plan(source.path, config, versions, root=source.root)
    with closing(plan), output.only_driver(part):
        totals = Totals()
        todo = part.own(_missing_units(plan, output, totals, part, replace=replace))
        before = read_farm_file(output, part.farm_file)
        if not len(todo):
            if _is_finished(before, config, versions, totals):  # without the seconds that MLflow takes to come up
                return before
            tracker = Tracker(config, run_id=before.get("run_id"))
            work = Work(units_skipped=totals.shards)
            return _finish(config, output, _head(config, versions, tracker), before, totals, work, tracker)
        from uniaudio.tokenize_farm.flow import Flow, ray_workers  # ray: only where there is work

        with ray_workers(config, versions, jobs=len(todo), kind=worker) as pool:
            tracker = Tracker(config, run_id=before.get("run_id"))  # while the workers load their models
            head = _head(config, versions, tracker)
            write_farm_file(output, before | head | {"status": "running"}, part.farm_file)
            report = _Report(config, totals, tracker)
            schedule = Schedule(todo, size=plan.size, name=plan.name, retries=config.retries)
            rows = sum(plan.size(unit) for unit in todo.tolist())
            with _closing_on_error(tracker):
                work = Flow(config, plan, pool, output, schedule, report, progress, rows).run()
        work.units_skipped = totals.shards - len(todo)
        content = _finish(config, output, head, before, totals, work, tracker)
        if len(output.shards()) == len(plan):
            output.index()
        if part.count > 1 and len(shards := output.shards()) == len(plan):  # the last part sums up for all
            write_farm_file(output, {**content, "totals": total(sidecar for _, sidecar in _sidecars(output, shards) if sidecar)})
        return content


@dataclass
class _Report:
    """Counts published units, tells MLflow the speed now and then, and stops a farm that drops too much."""

    config: FarmConfig
    totals: Totals
    tracker: Tracker
    logged_at: float = 0.0

    def __call__(self, work: Work, result: UnitResult) -> None:
        self.totals.add(result.sidecar)
        if work.seconds >= self.logged_at + _LOG_SECONDS:
            self.logged_at = work.seconds
            self.tracker.log(work.units, {"times_real_time": work.audio_seconds / work.seconds})
            self.tracker.flush()
        _check_budget(self.config, self.totals, _BUDGET_ROWS)


def _head(config: FarmConfig, versions: dict[str, str], tracker: Tracker) -> dict[str, Any]:
    return {
        "run_id": tracker.run_id,
        "experiment": config.experiment,
        "manifest": config.manifest,
        "gpus_per_worker": config.gpus_per_worker,
        "tokenizers": versions,
        "tokenizer_configs": {view: spec.model_dump(mode="json") for view, spec in config.tokenizers.items()},
    }


def _is_finished(before: dict, config: FarmConfig, versions: dict[str, str], totals: Totals) -> bool:
    """Whether `farm.json` says already what would be said now, MLflow included: it is written just before the run is closed."""
    head = {"status": "finished", "manifest": config.manifest, "tokenizers": versions, "totals": totals.as_json()}
    return all(before.get(key) == value for key, value in head.items())


@contextmanager
def _closing_on_error(tracker: Tracker) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        tracker.finish("KILLED", {})
        raise
    except UserError:
        tracker.finish("FAILED", {})
        raise


def _finish(config: FarmConfig, output: Output, head: dict, before: dict, totals: Totals, work: Work, tracker: Tracker) -> dict:
    """Sums up, publishes `farm.json` (a part: its own), closes the MLflow run, and holds the result against the failure budget."""
    summary = totals.as_json()
    over = totals.dropped_share > config.max_dropped_fraction
    last_work = work.as_json() if work.units else before.get("last_work", work.as_json())
    content = {**head, "status": "failed" if over else "finished", "totals": summary, "last_work": last_work}
    text = write_farm_file(output, content, Part.of(config).farm_file)
    numbers = {key: summary[key] for key in ("clips", "audio_seconds", "frames", "shards")} | {"dropped": totals.drops}
    if work.units:
        numbers |= {key: work.as_json()[key] for key in ("times_real_time", "clips_per_second", "seconds")}
    tracker.log(summary["shards"], numbers | {f"dropped.{reason}": n for reason, n in summary["dropped_by_reason"].items()})
    tracker.finish("FAILED" if over else "FINISHED", {"farm.json": text})
    _check_budget(config, totals, 0)
    return content


def _check_budget(config: FarmConfig, totals: Totals, from_rows: int) -> None:
    """Raises UserError where too many clips were dropped."""
    share = totals.dropped_share
    if totals.rows < from_rows or share <= config.max_dropped_fraction:
        return
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(totals.dropped.items()))
    raise UserError(
        f"dropped {totals.drops} of {totals.drops + totals.clips} clips ({reasons})",
        seen=f"{share:.3f}",
        allowed=f"max_dropped_fraction {config.max_dropped_fraction:g}",
        remedy=f"see the sidecars in {config.output_dir}; correct the recordings, or raise max_dropped_fraction",
    )


def _missing_units(plan: Plan, output: Output, totals: Totals, part: Part, *, replace: bool) -> np.ndarray:
    """Units without their shard, in order; what `part` has published goes into `totals`. Shards of other units are an error, or with
    `replace` unpublished."""
    missing = np.ones(len(plan), dtype=bool)
    foreign = []
    for (split, number), sidecar in _sidecars(output, output.shards()):
        unit = plan.find(split, number)
        if unit is not None and sidecar is not None and sidecar.get("fingerprint") == plan.fingerprint(unit):
            missing[unit] = False
            if part.has(unit):
                totals.add(sidecar)
        elif sidecar is not None:
            foreign.append((split, number))
    if foreign and not replace:
        names = [shard_name(*shard) for shard in foreign[:3]]
        raise UserError(
            f"{output.address} holds shards of another manifest, other filters or other tokenizers",
            seen=", ".join(names) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""),
            remedy="give another output_dir, or --replace to make these shards again",
        )
    for shard in foreign:
        output.remove(*shard)
    return np.flatnonzero(missing)


def _sidecars(output: Output, shards: list[Shard]) -> Iterator[tuple[Shard, dict | None]]:
    """Each shard with its sidecar, in order; many are read at once, so that a store's answers are not waited for one by one."""
    with ThreadPoolExecutor(_READERS) as pool:
        for begin in range(0, len(shards), _READ_AHEAD):
            some = shards[begin : begin + _READ_AHEAD]
            yield from zip(some, pool.map(lambda shard: output.sidecar(*shard), some), strict=True)
