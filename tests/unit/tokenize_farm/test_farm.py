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
from uniaudio.tokenize_farm.index import list_shards
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.schema import TokenizedClip
from uniaudio.tokenize_farm.shard_writer import write_shard
from uniaudio.tokenize_farm.summary import Work, read_farm_file, total
from uniaudio.tokenize_farm.units import WorkUnit


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


def make_unit(number: int, fingerprint: str = "f") -> WorkUnit:
    return WorkUnit("train", number, (ManifestRow(id=f"c{number}", audio_filepath="x.wav"),), fingerprint)


def publish(unit: WorkUnit, directory: Path, *, dropped: int = 0) -> dict:
    clips = [TokenizedClip(row.id, {"id": row.id, "kind": "speech", "seconds": 1.0}) for row in unit.rows]
    drops = {"missing": [f"gone{unit.number}_{i}" for i in range(dropped)]} if dropped else {}
    extra = {"fingerprint": unit.fingerprint, "rows": len(unit.rows) + dropped, "dropped_details": {}}
    return write_shard(directory, unit.split, unit.number, clips, tokenizers={}, dropped=drops, extra=extra)


def test_only_unpublished_units_are_made(tmp_path: Path) -> None:
    units = [make_unit(i) for i in range(4)]
    publish(units[1], tmp_path)
    publish(units[2], tmp_path)
    (tmp_path / "train-000002.json").unlink()  # killed before the sidecar: the shard does not exist
    assert farm._missing_units(units, tmp_path, replace=False) == [units[0], units[2], units[3]]


def test_shards_of_another_farm_are_refused_or_replaced(tmp_path: Path) -> None:
    for i in range(5):
        publish(make_unit(i, "other"), tmp_path)
    units = [make_unit(0), make_unit(1, "other"), make_unit(2)]
    with pytest.raises(UserError, match=r"another manifest.*train-000000, train-000002, train-000003 and 1 more.*--replace"):
        farm._missing_units(units, tmp_path, replace=False)
    assert len(list_shards(tmp_path)) == 5
    assert farm._missing_units(units, tmp_path, replace=True) == [units[0], units[2]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000001.index.npz", "train-000001.json", "train-000001.tar"]


def test_a_second_driver_is_refused_and_left_overs_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".train-000000.tar.12345678.tmp").touch()
    with farm._only_driver_of(tmp_path):
        assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
        with pytest.raises(UserError, match="another farm is writing"), farm._only_driver_of(tmp_path):
            pass
    with (tmp_path / ".farm.lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def make_run(tmp_path: Path, **fields: object) -> farm._Run:
    return farm._Run(make_config(tmp_path, **fields), workers=None, tracker=FakeTracker(), progress=None)


def test_a_unit_that_keeps_killing_workers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(reference: object) -> None:
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(farm.ray, "get", died)
    run = make_run(tmp_path, retries=2)
    assert [run._collect(None, make_unit(7)) for _ in range(2)] == [False, False]
    assert run._collect(None, make_unit(8)) is False  # another unit has its own tries
    with pytest.raises(UserError, match=r"train-000007 killed its worker 3 times.*c7.*retries 2"):
        run._collect(None, make_unit(7))


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "train-000003 could not be written.*No space left.*free space"),
        (UserError("tokenizers disagree", remedy="mend them"), "tokenizers disagree.*mend them"),
    ],
)
def test_a_workers_fault_becomes_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception, message: str) -> None:
    def failed(reference: object) -> None:
        raise ray.exceptions.RayTaskError("run", "traceback", cause)

    monkeypatch.setattr(farm.ray, "get", failed)
    with pytest.raises(UserError, match=message) as caught:
        make_run(tmp_path)._collect(None, make_unit(3))
    assert "\n" not in str(caught.value)


def test_a_bug_in_a_worker_is_not_taken_for_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(reference: object) -> None:
        raise ray.exceptions.RayTaskError("run", "traceback", ZeroDivisionError())

    monkeypatch.setattr(farm.ray, "get", failed)
    with pytest.raises(ray.exceptions.RayTaskError):
        make_run(tmp_path)._collect(None, make_unit(3))


@pytest.mark.parametrize(("limit", "passes"), [(0.5, True), (0.49, False)])
def test_too_many_drops_fail_the_farm_but_keep_the_shards(tmp_path: Path, limit: float, passes: bool) -> None:
    config = make_config(tmp_path, max_dropped_fraction=limit)
    for i in range(3):
        publish(make_unit(i), tmp_path / "out", dropped=1)
    tracker = FakeTracker()
    if passes:
        farm._finish(config, {"run_id": "r"}, {}, Work(), tracker)
    else:
        with pytest.raises(UserError, match=r"dropped 3 of 6 clips \(missing 3\).*seen: 0.500.*max_dropped_fraction 0.49"):
            farm._finish(config, {"run_id": "r"}, {}, Work(), tracker)
    assert tracker.status == ("FINISHED" if passes else "FAILED") and tracker.metrics["dropped.missing"] == 3
    content = read_farm_file(tmp_path / "out")
    assert content["status"] == ("finished" if passes else "failed") and content["totals"]["clips"] == 3
    assert len(list_shards(tmp_path / "out")) == 3


def test_a_rerun_with_nothing_to_do_keeps_the_speeds(tmp_path: Path) -> None:
    publish(make_unit(0), tmp_path / "out")
    before = {"last_work": {"times_real_time": 12.5}}
    content = farm._finish(make_config(tmp_path), {"run_id": "r"}, before, Work(), FakeTracker())
    assert content["last_work"] == {"times_real_time": 12.5}


def test_work_adds_up_speeds_by_step(tmp_path: Path) -> None:
    work = Work(seconds=4.0)
    for i in range(3):
        work.add(publish(make_unit(i), tmp_path, dropped=i), {"decode": 0.5, "midi:f0": 1.0})
    numbers = work.as_json()
    assert (work.rows, work.clips, work.units) == (6, 3, 3)
    assert numbers["times_real_time"] == 0.75 and numbers["times_real_time_by_step"] == {"decode": 2.0, "midi:f0": 1.0}
    totals = total(shard.read_sidecar() for shard in list_shards(tmp_path))
    assert totals["clips_by_kind"] == {"speech": 3} and totals["dropped_by_reason"] == {"missing": 3}


def test_a_damaged_farm_file_is_named(tmp_path: Path) -> None:
    assert read_farm_file(tmp_path) == {}
    (tmp_path / "farm.json").write_text("{")
    with pytest.raises(UserError, match=r"farm.json is not JSON.*delete it"):
        read_farm_file(tmp_path)
    (tmp_path / "farm.json").write_text(json.dumps({"run_id": "x"}))
    assert read_farm_file(tmp_path) == {"run_id": "x"}
