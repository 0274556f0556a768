import json
from pathlib import Path

import pytest

from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.tracking import Tracker, farm_runs, flatten, git_commit, tracking_uri


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return load_config(RunConfig, "demo_cpu", folder="runs", overrides=[f"train.output_dir={tmp_path / 'run'}"])


def test_a_resumed_run_continues_and_keeps_everything(run: RunConfig, tmp_path: Path) -> None:
    first = Tracker(run, run_id=None, tags={"git_commit": "abc"})
    first.log(1, {"loss": 2.5})
    first.finish("KILLED")
    longer = load_config(RunConfig, "demo_cpu", folder="runs", overrides=[f"train.output_dir={tmp_path / 'run'}", "train.steps=999"])
    second = Tracker(longer, run_id=first.run_id, tags={"git_commit": "def"})
    assert second.run_id == first.run_id
    for step in range(2, 1500):
        second.log(step, {"loss": 1.0})  # more than one batch
    second.finish("FINISHED")
    stored = second._client.get_run(first.run_id)
    assert stored.info.status == "FINISHED" and stored.data.tags["git_commit"] == "def"
    assert stored.data.params["train.steps"] == "400", "parameters are those of the start"
    assert [metric.step for metric in second._client.get_metric_history(first.run_id, "loss")] == list(range(1, 1500))
    assert (tmp_path / "mlflow.db").is_file()
    lost = Tracker(run, run_id="0" * 32, tags={})
    assert lost.run_id != first.run_id
    assert lost._client.get_run(lost.run_id).data.tags["resumed_from"] == "0" * 32
    lost.finish("FINISHED")


def test_the_store_is_a_choice_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking_uri(tmp_path / "run") == "http://tracker:5000"


def test_params_are_flat_text(run: RunConfig) -> None:
    params = flatten(run)
    assert params["optim.lr"] == "0.005" and params["data.tasks"] == '["tts", "sound"]' and params["data.mix.weights"] == "{}"


def test_the_farm_run_is_named(tmp_path: Path) -> None:
    assert farm_runs(tmp_path) == {}
    (tmp_path / "farm.json").write_text(json.dumps({"run_id": "r1", "status": "finished", "totals": {"clips": 3}}))
    assert farm_runs(tmp_path) == {"farm.run_id": "r1", "farm.status": "finished"}
    (tmp_path / "farm.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        farm_runs(tmp_path)


def test_commit_is_that_of_the_code() -> None:
    assert len(git_commit().removesuffix("-dirty")) == 40
