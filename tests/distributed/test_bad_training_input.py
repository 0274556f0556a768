"""What a user can get wrong before or during a training: one clear line, a non-zero exit, nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import uniaudio
from random_shards import write_random_shards
from small_disk import small_disk
from test_train_command import finish, start

CONFIG = """
model: {width: 32, num_heads: 2, ffn_width: 64, global_layers: 2, local_layers: 1, max_positions: 256, text_width: 16, kernels: torch}
data: {shards: FOLDER/shards, tasks: [tts, sound], frames_per_row: 128, rows_per_micro_batch: 2, prompt_seconds: 0.3}
optim: {lr: 0.01, warmup_steps: 5}
train: {output_dir: FOLDER/run, steps: 4, device: cpu, log_every: 1, save_every: 2, evaluate_batches: 1, threads: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, the config run.yaml, and in `run` a finished training of it."""
    folder = tmp_path_factory.mktemp("bad")
    write_random_shards(folder / "shards", clips=40, valid_clips=20, codebooks=3, text_width=16, frames=(20, 60), clips_per_shard=20)
    (folder / "run.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    assert train(folder) == (0, "")
    return folder


def train(folder: Path, *overrides: str) -> tuple[int, str]:
    store = f"sqlite:///{folder}/mlflow.db"
    return uniaudio(folder / "results", "train", str(folder / "run.yaml"), *overrides, MLFLOW_TRACKING_URI=store)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "uniaudio: error: override optim.lrr=1: unknown key optim.lrr | seen: 1 | allowed: "),
        ("parallel.tensor_parallel_size=3", "tensor_parallel_size does not divide model.num_heads (4) | seen: 3 | allowed: 1, 2, 4"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_anything_is_imported(override: str, message: str) -> None:
    command = [sys.executable, "-m", "uniaudio", "train", "demo_cpu", override]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    [line] = done.stderr.splitlines()
    assert done.returncode == 2 and message in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.attention=torch_varlen", "model.attention=torch_varlen needs CUDA and bf16 | seen: device cpu, train.precision fp32 | "),
        ("model.kernels=triton", "model.kernels=triton needs CUDA | seen: device cpu | remedy: set model.kernels=auto"),
    ],
)
def test_kernels_that_cannot_run_here_are_one_line(folder: Path, tmp_path: Path, override: str, message: str) -> None:
    process = start(folder, str(tmp_path / "run"), override, env={**os.environ, "TRITON_INTERPRET": "0"})
    code, errors = finish(process)
    assert code == 2 and "Traceback" not in errors and message in errors.splitlines()[-1], errors


@pytest.mark.parametrize(("key", "value", "was"), [("positions", "time", "learned"), ("num_heads", "4", "2"), ("gelu", "tanh", "exact")])
@pytest.mark.parametrize("how", ["resume", "init_from"])
def test_weights_are_not_used_for_other_mathematics(folder: Path, tmp_path: Path, key: str, value: str, was: str, how: str) -> None:
    before = contents(folder / "run")
    place = [] if how == "resume" else [f"train.init_from={folder / 'run'}", f"train.output_dir={tmp_path / 'new'}"]
    code, told = train(folder, f"model.{key}={value}", "train.steps=6", *place)
    assert code == 2 and f"is of another model: model.{key} | seen: {value} | allowed: {was}" in told
    assert contents(folder / "run") == before


def test_a_shard_with_a_flipped_byte_is_named(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(folder / "shards", shards)
    tar = shards / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    code, errors = train(folder, f"data.shards={shards}", f"train.output_dir={tmp_path / 'run'}")
    [line] = errors.splitlines()
    assert code == 2 and f"shard {tar.name} is not what its index says: a byte has changed" in line and "run the farm again" in line
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    code, errors = uniaudio(tmp_path / "results", "shards", "verify", str(shards))
    assert code == 1 and "train-000001: " in errors


LAYOUTS = [["data.workers=2"], ["parallel.data_parallel_size=2", "data.rows_per_micro_batch=1"]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_what_is_trained_is_saved_before_a_bad_shard_ends_it(folder: Path, tmp_path: Path, layout: list[str]) -> None:
    """On every rank, whoever met it; once the shard is whole again the same command goes on as if nothing had been."""
    shards, one_by_one = tmp_path / "shards", ["data.shards_per_block=1", "train.steps=30", "train.save_every=1000", *layout]
    shutil.copytree(folder / "shards", shards)
    assert finish(start(folder, str(tmp_path / "whole"), f"data.shards={shards}", *one_by_one))[0] == 0
    first, second = (shards / f"train-{number:06d}.tar" for number in (1, 0))  # in the order of this seed
    whole = second.read_bytes()
    second.write_bytes(whole[:-4096].replace(b"\0" * 16, b"\1" * 16, 1) + whole[-4096:])
    command = [str(tmp_path / "run"), f"data.shards={shards}", *one_by_one]
    code, errors = finish(start(folder, *command))
    assert code == 2 and "Traceback" not in errors and second.name in errors.splitlines()[-1] and first.name not in errors, errors
    [saved] = (tmp_path / "run" / "checkpoints").glob("step-*/manifest.json")
    assert 0 < json.loads(saved.read_text())["step"] < 30
    second.write_bytes(whole)
    assert finish(start(folder, *command))[0] == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_checkpoint_of_another_vocabulary_is_refused_and_left_as_it_is(folder: Path) -> None:
    before = contents(folder / "run")
    code, errors = train(folder, "model.vocabulary=released", "train.steps=6")
    assert code == 2 and errors.startswith("uniaudio: error: ") and "step-00000004 was made with another vocabulary" in errors
    assert contents(folder / "run") == before


def test_a_resume_on_other_shards_is_refused_and_says_what_changed(folder: Path, tmp_path: Path) -> None:
    before, more = contents(folder / "run"), tmp_path / "shards"
    write_random_shards(more, clips=60, valid_clips=20, codebooks=3, text_width=16, frames=(20, 60), clips_per_shard=20)
    code, errors = train(folder, f"data.shards={more}", "train.steps=6")
    line = errors.splitlines()[-1]
    assert code == 2 and "step-00000004 has its place in the order of other shards | seen: 3 shards of 60 clips, sha256 " in line
    assert "allowed: 2 shards of 40 clips, sha256 " in line and "begin with its weights: train.init_from" in line
    assert contents(folder / "run") == before


def test_a_disk_that_fills_up_keeps_the_checkpoint_before_and_the_training_goes_on_from_there(folder: Path, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in (folder / "run" / "checkpoints" / "step-00000002").iterdir())
    run = tmp_path / "disk" / "run"
    with small_disk(tmp_path / "disk", int(1.6 * size)) as resize:
        code, errors = train(folder, f"train.output_dir={run}")
        [line] = errors.splitlines()
        assert code == 2 and f"cannot write the checkpoint of step 4 to {run}/checkpoints" in line and "No space left" in line
        assert "make room, then start again: it resumes from step-00000002" in line
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"], "nothing half-written"
        resize(4 * size)
        assert train(folder, f"train.output_dir={run}") == (0, "")
        assert losses(run) == losses(folder / "run"), "bit for bit"
