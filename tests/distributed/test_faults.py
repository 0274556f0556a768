"""Steps that go wrong: not finite on one rank, again and again, or a loss that jumps."""

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml
from random_shards import write_random_shards
from ranks import run_ranks

LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "data 2": {"data_parallel_size": 2, "rows": 2},
    "pipeline 2": {"pipeline_parallel_size": 2, "accumulation": 2, "rows": 2},
    "ZeRO 1": {"data_parallel_size": 2, "rows": 2, "zero": 1},
    "ZeRO 2, bf16": {"data_parallel_size": 2, "rows": 2, "zero": 2, "precision": "bf16"},
    "ZeRO 3": {"data_parallel_size": 2, "rows": 2, "zero": 3},
    "pipeline 2, bf16, ZeRO 1": {"pipeline_parallel_size": 2, "accumulation": 2, "rows": 2, "zero": 1, "precision": "bf16"},
    "bf16, ZeRO 1": {"data_parallel_size": 2, "rows": 2, "zero": 1, "precision": "bf16"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_gradient_that_is_not_finite_changes_no_weight(name: str, tmp_path: Path) -> None:
    run = tiny_run.tiny_run(tmp_path, **LAYOUTS[name])
    for rank in run_ranks(run.parallel.world_size, tmp_path / "results", tiny_run.poisoned, config=run.model_dump(mode="json")):
        assert rank["same"]
        assert not math.isfinite(rank["norm"]) or rank["norm"] < 0, "the trainer sees it"
        assert rank["after"] == pytest.approx(rank["before"], rel=0.1), "and the training goes on"


@pytest.mark.parametrize("name", ["one", "pipeline 2, bf16, ZeRO 1", "bf16, ZeRO 1"])
def test_the_host_does_not_wait_for_the_device_inside_a_step(name: str, tmp_path: Path) -> None:
    run = tiny_run.tiny_run(tmp_path, **LAYOUTS[name])
    for found in run_ranks(run.parallel.world_size, tmp_path / "results", tiny_run.waits, config=run.model_dump(mode="json")):
        assert not found, "\n".join(found)


def test_the_parts_of_a_pipelines_step_are_told_by_each_stage(tmp_path: Path) -> None:
    """The wait for other stages among them; an evaluation is no part of a step."""
    run = tiny_run.tiny_run(tmp_path, **LAYOUTS["pipeline 2, bf16, ZeRO 1"])
    for rank in run_ranks(run.parallel.world_size, tmp_path / "results", tiny_run.parts, config=run.model_dump(mode="json")):
        assert set(rank["parts"]) == {"forward", "backward", "pipeline", "communication", "optimizer"}
        assert 0.3 * rank["step"] < sum(rank["parts"].values()) <= rank["step"]


TIMES = ("seconds", "frames_per", "mfu", "goodput", "system/")
CONFIG = """
model: {width: 32, num_heads: 2, ffn_width: 64, global_layers: 1, local_layers: 1, max_positions: 256, text_width: 16, kernels: torch}
data: {shards: FOLDER/shards, tasks: [tts], frames_per_row: 128, rows_per_micro_batch: 1, prompt_seconds: 0.3}
optim: {lr: 0.001, warmup_steps: 5}
train: {output_dir: FOLDER/run, steps: 50, device: cpu, log_every: 2, save_every: 40, evaluate_batches: 1, threads: 1}
"""


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    write_random_shards(tmp_path / "shards", clips=20, valid_clips=24, codebooks=3, text_width=16, frames=(20, 60))
    return yaml.safe_load(CONFIG.replace("FOLDER", str(tmp_path)))


def train_with_faults(
    config: dict[str, Any], not_finite: list[int], spikes: list[int], stop: int | None = None, later: bool = False
) -> dict[str, Any]:
    """A training whose n-th steps go wrong, or ask it to stop (0: its start); its metrics, its warnings, and the row it stands at.

    later: numbers are written out when the next step is under way, as beside a GPU.
    """
    import json
    import logging
    import os
    import signal

    import torch

    from uniaudio.configs.run import RunConfig
    from uniaudio.pretrain import trainer
    from uniaudio.pretrain.data.vocabulary import load_vocabulary
    from uniaudio.pretrain.engine import Engine, StepStatistics
    from uniaudio.pretrain.parallel.layout import Layout
    from uniaudio.pretrain.train import make_loaders, train

    original, messages = Engine.train_step, []
    calls = iter(range(1, 10_000))

    def step(self: Engine, batches: list[Any], *, learning_rate: float) -> StepStatistics:
        call = next(calls)
        if call in not_finite:
            self._set_loss_scale = lambda batches: self._loss_scale.fill_(math.inf)  # type: ignore[method-assign]
        statistics = original(self, batches, learning_rate=learning_rate)
        self.__dict__.pop("_set_loss_scale", None)
        if call in spikes:
            statistics.loss_sums_KQ *= 3
        if call == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return statistics

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    Engine.train_step = step  # type: ignore[method-assign]
    if later:
        trainer.works_meanwhile = lambda device: True
    logging.getLogger("uniaudio").addHandler(Keep())
    started = (lambda: os.kill(os.getpid(), signal.SIGTERM)) if stop == 0 else (lambda: None)
    code = train(RunConfig.model_validate(config), started=started)
    said = list(messages)
    folder = Path(config["train"]["output_dir"])
    manifests = [json.loads(path.read_text()) for path in sorted(folder.glob("checkpoints/step-*/manifest.json"))]
    newest = manifests[-1] if manifests else {"data_position": {"row": 0}, "clock": {}}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    run = RunConfig.model_validate(config)
    loader = make_loaders(run, load_vocabulary(run.model.vocabulary, run.model.num_codebooks), Layout(), torch.device("cpu")).train
    return {
        "code": code,
        "steps": steps,
        "lines": [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in lines],
        "messages": said,
        "checkpoints": [manifest["step"] for manifest in manifests],
        "row": newest["data_position"]["row"],
        "first_row_of": {str(step): loader.first_row(step) for step in (50, 56)},
        "clock": newest["clock"],
    }


@pytest.mark.parametrize("later", [False, True])
def test_skip_leaves_the_update_out_and_names_the_documents(config: dict[str, Any], tmp_path: Path, later: bool) -> None:
    config["train"]["on_non_finite"] = "skip"
    (done,) = run_ranks(1, tmp_path / "results", train_with_faults, config=config, later=later, not_finite=[4, 5], spikes=[])
    assert done["code"] == 0 and done["steps"] == list(range(1, 51)) and done["row"] == done["first_row_of"]["50"]
    said = [message for message in done["messages"] if "its update is left out" in message]
    assert len(said) == 2 and "step 4" in said[0] and "clip-0000" in said[0]
    assert done["clock"]["productive"] > 0


@pytest.mark.parametrize("later", [False, True])
def test_skipping_without_end_stops(config: dict[str, Any], tmp_path: Path, later: bool) -> None:
    config["train"]["on_non_finite"] = "skip"
    with pytest.raises(AssertionError, match=r"NonFiniteLoss: step 14: .*remedy: a lower optim.lr"):
        run_ranks(1, tmp_path / "results", train_with_faults, config=config, later=later, not_finite=list(range(5, 40)), spikes=[])


@pytest.mark.parametrize("later", [False, True])
def test_a_spike_goes_back_and_leaves_its_batches_out(config: dict[str, Any], tmp_path: Path, later: bool) -> None:
    config["train"]["spike_deviations"] = 8.0
    (done,) = run_ranks(1, tmp_path / "results", train_with_faults, config=config, later=later, not_finite=[], spikes=[45])
    assert done["code"] == 0 and done["steps"] == list(range(1, 51)), "the lines of the steps that were undone are gone"
    assert [message for message in done["messages"] if "back to step 40, without the batches of steps 41 to 46" in message]
    assert done["row"] == done["first_row_of"]["56"], "50 steps, and the batches of six left out"


def test_spikes_without_end_stop(config: dict[str, Any], tmp_path: Path) -> None:
    config["train"]["spike_deviations"] = 8.0
    config["train"]["save_every"] = 100
    with pytest.raises(AssertionError, match=r"LossSpike: step 45: .*seen: no checkpoint to go back to.*spike_deviations=0"):
        run_ranks(1, tmp_path / "results", train_with_faults, config=config, not_finite=[], spikes=[45])


@pytest.mark.parametrize(
    "save_every, saved", [(40, "step 40 is saved; the same command goes on"), (100, "no step is saved; the same command begins")]
)
@pytest.mark.parametrize("later", [False, True])
def test_nothing_behind_a_spike_is_saved_by_a_signal(
    config: dict[str, Any], tmp_path: Path, save_every: int, saved: str, later: bool
) -> None:
    """The numbers of step 45 are read only as it leaves."""
    config["train"] |= {"spike_deviations": 8.0, "save_every": save_every}
    (done,) = run_ranks(1, tmp_path / "results", train_with_faults, config=config, later=later, not_finite=[], spikes=[45], stop=45)
    assert done["code"] == 75 and done["checkpoints"] == ([40] if save_every == 40 else [])
    assert [message for message in done["messages"] if "step 45: the loss is far above the recent ones" in message]
    assert done["messages"][-1].startswith(f"asked to stop: {saved}")


def test_numbers_are_the_same_where_they_are_written_later(config: dict[str, Any], tmp_path: Path) -> None:
    config["train"] |= {"log_every": 3, "evaluate_every": 20}
    lines = []
    for later in (False, True):
        config["train"]["output_dir"] = str(tmp_path / f"run-{later}")
        (done,) = run_ranks(1, tmp_path / f"results-{later}", train_with_faults, config=config, later=later, not_finite=[], spikes=[])
        lines.append(done["lines"])
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0] if "valid/loss" in line] == [20, 40, 50]
    assert [line["step"] for line in lines[0] if "unigram" in line] == sorted({*range(3, 49, 3), 20, 40, 50})


def test_a_signal_before_the_first_step_closes_what_is_open_and_says_so(config: dict[str, Any], tmp_path: Path) -> None:
    (done,) = run_ranks(1, tmp_path / "results", train_with_faults, config=config, not_finite=[], spikes=[], stop=0)
    assert done["code"] == 75 and not done["steps"] and not done["checkpoints"]
    assert done["messages"][-1].startswith("asked to stop before the first step: nothing was trained")
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]
