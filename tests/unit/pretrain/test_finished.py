"""A finished training is known by its folder alone; whatever is not certainly finished is trained, or complained of, the long way."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.pretrain.finished import finished_at, record_finished


def make_run(folder: Path, *overrides: str) -> RunConfig:
    return load_config(RunConfig, "demo_cpu", folder="runs", overrides=[f"train.output_dir={folder}", "train.steps=8", *overrides])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run, folder = make_run(tmp_path), tmp_path / "checkpoints" / "step-00000008"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"12345")
    manifest = {"step": 8, "config": run.model_dump(mode="json"), "files": {"weights.safetensors": {"bytes": 5, "sha256": "x"}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    record_finished(run, 8)
    return folder


@pytest.mark.parametrize("overrides", [[], ["train.steps=7"], ["optim.lr=1", "train.log_every=3"]])
def test_a_finished_training_has_nothing_to_do(tmp_path: Path, checkpoint: Path, overrides: list[str]) -> None:
    assert finished_at(make_run(tmp_path, *overrides)) == checkpoint


@pytest.mark.parametrize("override", ["train.steps=9", "train.resume=false", "data.tasks=[tts]", "model.ffn_width=256"])
def test_more_steps_or_another_model_are_work(tmp_path: Path, checkpoint: Path, override: str) -> None:
    assert finished_at(make_run(tmp_path, override)) is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "weights.safetensors").write_bytes(b"1234"),
        lambda folder: (folder / "weights.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder.parents[1] / "finished.json").write_text('{"step": "x"}'),
        lambda folder: (folder.parents[1] / "finished.json").unlink(),  # killed between the last checkpoint and the end
    ],
)
def test_a_checkpoint_that_is_not_whole_is_work(tmp_path: Path, checkpoint: Path, harm: Callable[[Path], object]) -> None:
    harm(checkpoint)
    assert finished_at(make_run(tmp_path)) is None
