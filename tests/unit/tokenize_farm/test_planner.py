"""The planner: a measured minute, multiplied; every figure can be checked by hand."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from uniaudio.cli import cli
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.output import FolderOutput
from uniaudio.tokenize_farm.planner import Rates, plan_farm
from uniaudio.tokenize_farm.summary import write_farm_file

STEPS = {"decode": 10.0, "audio:codec": 40.0, "midi:f0": 20.0, "write": 2.0}


def make_farm(audio: float = 1_000.0, **fields: object) -> dict:
    """1,000 s of audio in 100 clips of 10 s and 4 shards of 100 kB."""
    totals = {"clips": 100, "audio_seconds": 1_000.0, "shards": 4, "tar_bytes": 400_000}
    return {"last_work": {"audio_seconds": audio, "worker_seconds_by_step": STEPS}, "totals": totals} | fields


def test_a_farm_on_cores() -> None:
    made = plan_farm(Rates.of(make_farm()), hours=1_000, cores=8, core_price=0.05)
    assert made["core_hours"] == 72.0 and made["gpu_hours"] == 0 and made["wall_hours"] == 9.0 and made["bound_by"] == "cores"
    assert made["clips"] == 360_000 and made["shards"] == 14_400 and made["objects"] == 43_200
    assert made["storage_gb"] == 1.4 and made["cost"] == 3.6
    assert made["core_hours_by_step"] == {"audio:codec": 40.0, "decode": 10.0, "midi:f0": 20.0, "write": 2.0}


@pytest.mark.parametrize(("cores", "bound", "wall"), [(4, "GPUs", 30.0), (1, "GPUs", 30.0), (0.1, "cores", 120.0)])
def test_tokenizers_count_for_the_gpus_that_the_trial_gave_them(cores: float, bound: str, wall: float) -> None:
    made = plan_farm(Rates.of(make_farm(gpus_per_worker=1.0)), hours=1_000, cores=cores, gpus=2, gpu_price=3.0)
    assert made["gpu_hours"] == 60.0 and made["core_hours"] == 12.0
    assert (made["bound_by"], made["wall_hours"]) == (bound, wall) and made["cost"] == wall * 2 * 3


def test_other_clips_and_units_than_the_trials() -> None:
    made = plan_farm(Rates.of(make_farm()), hours=1_000, cores=8, clip_seconds=20.0, clips_per_unit=1_000)
    assert made["clips"] == 180_000 and made["shards"] == 180


def test_too_little_to_plan_from_and_no_gpu_are_named() -> None:
    with pytest.raises(UserError, match=r"did too little.*5 s of audio.*at least 30 s.*some minutes"):
        Rates.of(make_farm(5.0))
    with pytest.raises(UserError, match="did too little"):
        Rates.of({})
    with pytest.raises(UserError, match=r"ran on a GPU, and the plan has none.*--gpus 8"):
        plan_farm(Rates.of(make_farm(gpus_per_worker=1.0)), hours=1, cores=1)


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def test_the_command_prints_the_plan(tmp_path: Path) -> None:
    write_farm_file(FolderOutput(tmp_path), make_farm())
    words = ["tokenize", "plan", tmp_path, "--hours", 165_000, "--cores", 128]
    made = json.loads(call(*words, "--json").output)
    assert made["wall_hours"] == round(165_000 * 0.072 / 128, 2) and made["clips"] == 59_400_000
    assert "59,400,000" in call(*words).output and "wall hours" in call(*words).output
