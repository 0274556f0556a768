"""The driver's decisions, without Ray workers: what is missing, who may write, when to give up."""

import errno
import fcntl
import json
from pathlib import Path

import pytest
import ray

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm import farm
from uniaudio.tokenize_farm.flow import Flow
from uniaudio.tokenize_farm.index import list_shards
from uniaudio.tokenize_farm.output import FolderOutput
from uniaudio.tokenize_farm.parts import WHOLE
from uniaudio.tokenize_farm.schedule import Job, Schedule
from uniaudio.tokenize_farm.schema import TokenizedClip
from uniaudio.tokenize_farm.shard_writer import write_shard
from uniaudio.tokenize_farm.summary import Totals, Work, read_farm_file, total
from uniaudio.tokenize_farm.units import Plan
from uniaudio.tokenize_farm.worker import UnitResult


class FakeTracker:
    """Takes what a tracker takes."""

    def __init__(self) -> None:
        self.status, self.metrics = None, {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics |= metrics

    def flush(self) -> None:
        """Nothing is kept back."""

    def finish(self, status: str, artifacts: dict[str, str]) -> None:
        self.status = status


def make_config(tmp_path: Path, **fields: object) -> FarmConfig:
    base = {"manifest": str(tmp_path / "m.jsonl"), "output_dir": str(tmp_path / "out"), "tokenizers": {"midi": {"name": "f0"}}}
    return FarmConfig.model_validate(base | fields)


def publish(number: int, directory: Path, fingerprint: str = "f", *, dropped: int = 0) -> dict:
    clips = [TokenizedClip(f"c{number}", {"id": f"c{number}", "kind": "speech", "seconds": 1.0})]
    drops = {"missing": [f"gone{number}_{i}" for i in range(dropped)]} if dropped else {}
    extra = {"fingerprint": fingerprint, "rows": 1 + dropped, "dropped_details": {}}
    return write_shard(directory, "train", number, clips, tokenizers={}, dropped=drops, extra=extra)


def make_plan(tmp_path: Path, units: int) -> Plan:
    lines = [json.dumps({"id": f"c{i}", "audio_filepath": f"{i}.wav", "split": "train"}) for i in range(units)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    return Plan(tmp_path / "m.jsonl", make_config(tmp_path, clips_per_unit=1), {})


def missing(plan: Plan, output: FolderOutput, *, replace: bool = False) -> list[int]:
    return farm._missing_units(plan, output, Totals(), WHOLE, replace=replace).tolist()


def test_only_unpublished_units_are_made(tmp_path: Path) -> None:
    plan, output = make_plan(tmp_path, 4), FolderOutput(tmp_path / "out")
    for number in (1, 2):
        publish(number, output.directory, plan.fingerprint(number))
    (tmp_path / "out" / "train-000002.json").unlink()  # killed before the sidecar: the shard does not exist
    totals = Totals()
    assert farm._missing_units(plan, output, totals, WHOLE, replace=False).tolist() == [0, 2, 3]
    assert totals.clips == totals.rows == totals.shards == 1


def test_shards_of_another_farm_are_refused_or_replaced(tmp_path: Path) -> None:
    plan, output = make_plan(tmp_path, 3), FolderOutput(tmp_path / "out")
    for number in range(5):
        publish(number, output.directory, plan.fingerprint(1) if number == 1 else "other")
    with pytest.raises(UserError, match=r"another manifest.*train-000000, train-000002, train-000003 and 1 more.*--replace"):
        missing(plan, output)
    assert len(output.shards()) == 5
    assert missing(plan, output, replace=True) == [0, 2]
    assert sorted(path.name for path in output.directory.iterdir()) == ["train-000001.index.npz", "train-000001.json", "train-000001.tar"]


def test_a_second_driver_is_refused_and_left_overs_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".train-000000.tar.12345678.tmp").touch()
    output = FolderOutput(tmp_path)
    with output.only_driver():
        assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
        with pytest.raises(UserError, match="another farm is writing"), output.only_driver():
            pass
    with (tmp_path / ".farm.lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


class FakePool:
    """Counts what a pool is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.running, self.starting = 1, []

    def name(self, actor: object) -> str:
        return f"host of {actor}"

    def ended(self, actor: object) -> None:
        self.told.append("ended")

    def died(self, actor: object) -> None:
        self.told.append("died")


def make_flow(tmp_path: Path, units: int = 9, **fields: object) -> Flow:
    plan = make_plan(tmp_path, units)
    config = make_config(tmp_path, **fields)
    schedule = Schedule(range(units), size=plan.size, name=plan.name, retries=config.retries)
    return Flow(config, plan, FakePool(), FolderOutput(tmp_path / "out"), schedule, report=lambda work, result: None)


def take_in(flow: Flow, job: Job, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failed(reference: object) -> None:
        raise error

    monkeypatch.setattr("uniaudio.tokenize_farm.flow.ray.get", failed)
    flow._take_in(None, job, "actor")


def test_units_that_a_dying_worker_had_published_are_counted_and_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = make_flow(tmp_path)
    job = flow.schedule.next(3)
    publish(0, flow.output.directory, flow.plan.fingerprint(0))
    take_in(flow, job, monkeypatch, ray.exceptions.ActorDiedError())
    assert flow.work.units == 1 and flow.pool.told == ["ended", "died"]
    assert [flow.schedule.next(1), flow.schedule.next(1)] == [Job((unit,), alone=True) for unit in (1, 2)]


def test_a_decoder_that_dies_takes_no_worker_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = make_flow(tmp_path)
    take_in(flow, flow.schedule.next(1), monkeypatch, ray.exceptions.WorkerCrashedError())
    assert flow.pool.told == ["ended"] and flow.schedule.next(1) == Job((0,), alone=True)


def silent_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Flow:
    """A flow whose workers have not answered for so long."""
    monkeypatch.setattr("uniaudio.tokenize_farm.flow.ray.wait", lambda references, **options: ([], references))
    flow = make_flow(tmp_path)
    for reference in ("first", "second"):
        flow._running[reference] = flow.schedule.next(2), "actor"
        flow._calls.begin(reference, flow.work.seconds)
        flow.work.seconds += seconds
    flow._collect()
    return flow


def test_a_silent_farm_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    flow = silent_flow(tmp_path, monkeypatch, 45.0)
    for seconds in (100.0, 179.0, 181.0):
        flow.work.seconds = seconds
        flow._collect()
    said = "train-000000, train-000001 on host of actor (90 s), train-000002, train-000003 on host of actor (45 s)"
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing has ended for 90 s; tokenizing: {said}; decoding ahead: nothing",
        f"nothing has ended for 181 s; tokenizing: {said}; decoding ahead: nothing".replace("90 s)", "181 s)").replace("45 s)", "136 s)"),
    ]
    flow.pool.running, flow.work.seconds = 0, 400.0
    flow._collect()
    assert "no worker runs since 400 s: loading models, or the cluster has no room (cpus_per_worker 1" in caplog.text


def test_a_worker_that_answers_no_more_is_ended_and_its_units_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flow = silent_flow(tmp_path, monkeypatch, 4 * 3_600.0)
    assert flow.pool.told == ["ended", "died"] and list(flow._running) == ["second"]
    assert [flow.schedule.next(1) for _ in range(2)] == [Job((unit,), alone=True) for unit in (0, 1)]
    assert "the worker of train-000000, train-000001 died: no answer from host of actor for 21600 s" in caplog.text


def test_how_long_a_call_may_take_follows_the_longest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = silent_flow(tmp_path, monkeypatch, 400.0)
    for longest, seconds, left in ((600.0, 5_999.0, 2), (1.0, 3_599.0, 2), (1.0, 3_601.0, 1), (600.0, 6_401.0, 0)):
        flow._calls.longest, flow.work.seconds = longest, seconds
        flow._collect()
        assert len(flow._running) == left


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "train-000003 could not be written.*No space left.*free space"),
        (UserError("tokenizers disagree", remedy="mend them"), "tokenizers disagree.*mend them"),
    ],
)
def test_a_workers_fault_becomes_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        take_in(make_flow(tmp_path), Job((3,)), monkeypatch, ray.exceptions.RayTaskError("run", "traceback", cause))
    assert "\n" not in str(caught.value)


def test_a_store_that_stays_away_is_given_up_after_some_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = make_flow(tmp_path, retries=2)
    away = ray.exceptions.RayTaskError("run", "traceback", OSError("s3://b: connection refused"))
    for _ in range(2):
        take_in(flow, Job((3,)), monkeypatch, away)
        assert flow.schedule.next(1) == Job((3,), alone=True)
    with pytest.raises(UserError, match=r"train-000003 could not be written.*connection refused"):
        take_in(flow, Job((3,)), monkeypatch, away)


def test_a_bug_in_a_worker_is_not_taken_for_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ray.exceptions.RayTaskError):
        take_in(make_flow(tmp_path), Job((3,)), monkeypatch, ray.exceptions.RayTaskError("run", "traceback", ZeroDivisionError()))


def finish(config: FarmConfig, before: dict, work: Work, tracker: FakeTracker) -> dict:
    output, totals = FolderOutput(Path(config.output_dir)), Totals()
    for shard in output.shards():
        totals.add(output.sidecar(*shard))
    return farm._finish(config, output, {"run_id": "r"}, before, totals, work, tracker)


@pytest.mark.parametrize(
    ("change", "finished"),
    [({}, True), ({"status": "running"}, False), ({"tokenizers": {"midi": "f0/2"}}, False), ({"totals": {"clips": 3}}, False)],
)
def test_a_finished_farm_is_known_by_its_file_alone(tmp_path: Path, change: dict, finished: bool) -> None:
    config, totals = make_config(tmp_path), Totals()
    totals.add(publish(0, tmp_path))
    said = {"status": "finished", "manifest": config.manifest, "tokenizers": {"midi": "f0/1"}, "totals": totals.as_json(), "run_id": "r"}
    before = json.loads(json.dumps(said | change))
    assert farm._is_finished(before, config, {"midi": "f0/1"}, totals) is finished


def test_a_farm_that_drops_too_much_is_stopped_on_its_way(tmp_path: Path) -> None:
    totals, work = Totals(), Work(units=1, seconds=1.0)
    report = farm._Report(make_config(tmp_path, max_dropped_fraction=0.9), totals, FakeTracker())
    sidecar = publish(0, tmp_path, dropped=99)
    for number in range(9):
        report(work, UnitResult(f"train-{number}", sidecar))
    with pytest.raises(UserError, match="dropped 990 of 1000 clips .missing 990.*0.990.*max_dropped_fraction 0.9"):
        report(work, UnitResult("train-9", sidecar))


@pytest.mark.parametrize(("limit", "passes"), [(0.5, True), (0.49, False)])
def test_too_many_drops_fail_the_farm_but_keep_the_shards(tmp_path: Path, limit: float, passes: bool) -> None:
    config = make_config(tmp_path, max_dropped_fraction=limit)
    for i in range(3):
        publish(i, tmp_path / "out", dropped=1)
    tracker = FakeTracker()
    if passes:
        finish(config, {}, Work(), tracker)
    else:
        with pytest.raises(UserError, match=r"dropped 3 of 6 clips \(missing 3\).*seen: 0.500.*max_dropped_fraction 0.49"):
            finish(config, {}, Work(), tracker)
    assert tracker.status == ("FINISHED" if passes else "FAILED") and tracker.metrics["dropped.missing"] == 3
    content = read_farm_file(FolderOutput(tmp_path / "out"))
    assert content["status"] == ("finished" if passes else "failed") and content["totals"]["clips"] == 3
    assert len(list_shards(tmp_path / "out")) == 3


def test_a_rerun_with_nothing_to_do_keeps_the_speeds(tmp_path: Path) -> None:
    publish(0, tmp_path / "out")
    before = {"last_work": {"times_real_time": 12.5}}
    content = finish(make_config(tmp_path), before, Work(), FakeTracker())
    assert content["last_work"] == {"times_real_time": 12.5}


def test_work_adds_up_speeds_by_step(tmp_path: Path) -> None:
    work = Work(seconds=4.0)
    for i in range(3):
        work.add(publish(i, tmp_path, dropped=i), {"decode": 0.5, "midi:f0": 1.0})
    numbers = work.as_json()
    assert (work.rows, work.clips, work.units) == (6, 3, 3)
    assert numbers["times_real_time"] == 0.75 and numbers["times_real_time_by_step"] == {"decode": 2.0, "midi:f0": 1.0}
    totals = total(shard.read_sidecar() for shard in list_shards(tmp_path))
    assert totals["clips_by_kind"] == {"speech": 3} and totals["dropped_by_reason"] == {"missing": 3}


@pytest.mark.parametrize(
    ("decoders", "busy", "bound_by"),
    [
        (0, {"decode": 0.15, "midi:f0": 0.25, "write": 0.05}, "midi:f0"),
        (1, {"decode": 0.3, "workers": 0.25, "write": 0.01}, "decode"),
        (2, {"decode": 0.15, "workers": 0.25, "write": 0.01}, "workers"),
    ],
)
def test_the_busiest_stage_bounds_the_farm(decoders: int, busy: dict[str, float], bound_by: str) -> None:
    steps = {"decode": 3.0, "midi:f0": 5.0, "write": 1.0}
    work = Work(seconds=10.0, workers=2, decoders=decoders, calls_at_once=5, seconds_by_step=steps)
    assert work.busy() == pytest.approx(busy) and work.bound_by == bound_by
    assert Work().bound_by == "nothing yet"


def test_a_damaged_farm_file_is_named(tmp_path: Path) -> None:
    assert read_farm_file(FolderOutput(tmp_path)) == {}
    (tmp_path / "farm.json").write_text("{")
    with pytest.raises(UserError, match=r"farm.json is not JSON.*delete it"):
        read_farm_file(FolderOutput(tmp_path))
    (tmp_path / "farm.json").write_text(json.dumps({"run_id": "x"}))
    assert read_farm_file(FolderOutput(tmp_path)) == {"run_id": "x"}
