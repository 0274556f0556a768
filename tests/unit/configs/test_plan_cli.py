"""`uniaudio plan` against runs that were measured, and its faults."""

import json
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner

from uniaudio.configs.plan_cli import plan
from uniaudio.errors import UserError

ALONE = ["paper_1b", "data.shards=s", "parallel.data_parallel_size=1"]


def numbers(*words: str) -> dict:
    result = CliRunner().invoke(plan, [*ALONE, *words, "--json"], catch_exceptions=False)
    return json.loads(result.output)


@pytest.mark.parametrize(("rows", "measured"), [(4, 0.1881), (8, 0.3133)])
def test_a_step_is_near_those_measured_on_one_h100(rows: int, measured: float) -> None:
    """docs/runs/paper_1b_h100: by the difference of the two, 63 ms a step that do not grow with the frames (the optimizer step of that time
    and the host), of which the plan has 30 left (docs/training.md)."""
    planned = numbers(f"data.rows_per_micro_batch={rows}", "train.cuda_graphs=false")["step_total_seconds"]
    assert planned + 0.033 == pytest.approx(measured, rel=0.07)


@pytest.mark.parametrize(("rows", "measured"), [(4, 0.1294), (8, 0.2529)])
def test_a_step_of_cuda_graphs_is_near_those_measured_on_one_h200(rows: int, measured: float) -> None:
    """docs/runs/paper_1b_h200."""
    assert numbers(f"data.rows_per_micro_batch={rows}")["step_total_seconds"] == pytest.approx(measured, rel=0.07)


def test_zero_2_with_an_optimizer_on_the_host_is_near_that_measured_on_one_h200() -> None:
    """docs/runs/offload_h200.jsonl: the median of its steps behind the first, eight micro-batches of 8,192 frames."""
    lines = map(json.loads, (Path(__file__).parents[3] / "docs/runs/offload_h200.jsonl").read_text().splitlines())
    measured = statistics.median(line["seconds_per_step"] for line in lines if line["step"] > 1 and "loss" in line)
    words = ["parallel.zero_stage=2", "optim.gradient_accumulation=8", "data.rows_per_micro_batch=8", "data.frames_per_row=1024"]
    on_host = numbers(*words, "parallel.offload_optimizer=true")
    assert on_host["step_total_seconds"] == pytest.approx(measured, rel=0.03)
    assert 1.5 <= numbers(*words)["step_total_seconds"] <= 1.8, "without it (docs/training.md; log not kept)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["parallel.zero_stage=3"], "ZeRO-3: weights that are gathered layer by layer are not in this time"),
        (["parallel.zero_stage=2", "parallel.data_parallel_size=2"], "ZeRO-2: measured on one GPU alone"),
    ],
)
def test_time_that_is_not_modelled_is_said(words: list[str], message: str) -> None:
    assert f"not modelled      {message}" in CliRunner().invoke(plan, [*ALONE, *words], catch_exceptions=False).output
    assert numbers(*words)["not_modelled"].startswith(message)
    assert numbers()["not_modelled"] is None


def test_a_pipeline_idles_while_it_fills() -> None:
    cut = numbers("parallel.pipeline_parallel_size=2", "optim.gradient_accumulation=8")
    assert 1 / 9 <= cut["bubble"] < 1 / 9 + 0.03, "at least (stages - 1) / (micro-batches + stages - 1), and a little of uneven stages"
    assert numbers()["bubble"] == 0


def test_cost_hours_and_what_does_not_fit_are_said() -> None:
    text = CliRunner().invoke(plan, [*ALONE, "--price", "2", "data.rows_per_micro_batch=32"], catch_exceptions=False).output
    record = numbers("--price", "2", "data.rows_per_micro_batch=32")
    assert record["cost"] == pytest.approx(2 * record["hours"])
    assert "does NOT fit" in text and "GPU hours" in text and f"{record['cost']:,.0f}" in text
    assert "does NOT fit" not in CliRunner().invoke(plan, ALONE, catch_exceptions=False).output


def test_more_gpus_are_faster_but_not_by_their_number() -> None:
    one, eight = numbers(), numbers("parallel.data_parallel_size=8")
    assert 6 < eight["frames_per_second"] / one["frames_per_second"] < 8
    tensor = numbers("parallel.tensor_parallel_size=2")
    assert one["frames_per_second"] < tensor["frames_per_second"] < 2 * one["frames_per_second"]
    assert tensor["step_seconds"]["tensor_parallel"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--price", "nan"], r"--price is no price \| seen: nan \| allowed: a number, at least 0"),
        (["--gpu", "A100", "train.fp8=true"], r"this GPU has no products in 8 bits \| seen: A100 \| allowed: H100, H200, B200"),
        (
            ["--gpus-per-node", "6", "parallel.tensor_parallel_size=4"],
            r"does not divide the GPUs of a node: .* \| seen: 4 \| allowed: 1, 2, 3, 6 ",
        ),
    ],
)
def test_what_no_machine_is_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(plan, [*ALONE, *words], catch_exceptions=False)


def test_fp32_is_refused() -> None:
    with pytest.raises(UserError, match=r"a plan is of bf16 training on GPUs \| seen: train.precision fp32"):
        CliRunner().invoke(plan, ["demo_cpu", "data.shards=s"], catch_exceptions=False)
