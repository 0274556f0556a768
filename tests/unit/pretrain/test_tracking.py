import json
from pathlib import Path

import pytest

from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.tracking import farm_runs, flatten, git_commit


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return load_config(RunConfig, "demo_cpu", folder="runs", overrides=[f"train.output_dir={tmp_path / 'run'}"])


def test_params_are_flat_text(run: RunConfig) -> None:
    params = flatten(run)
    assert params["optim.lr"] == str(run.optim.lr) and params["data.tasks"] == '["tts", "sound"]' and params["data.mix.weights"] == "{}"


def test_the_farm_run_is_named(tmp_path: Path) -> None:
    assert farm_runs(tmp_path) == {}
    (tmp_path / "farm.json").write_text(json.dumps({"run_id": "r1", "status": "finished", "totals": {"clips": 3}}))
    assert farm_runs(tmp_path) == {"farm.run_id": "r1", "farm.status": "finished"}
    (tmp_path / "farm.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        farm_runs(tmp_path)


def test_commit_is_that_of_the_code() -> None:
    assert len(git_commit().removesuffix("-dirty")) == 40
