"""Memory and time of a run from its config, against the real model and against what was measured."""

import pytest
import torch

from uniaudio.configs.estimate import memory_gb, padded_vocabulary_size, seconds_per_step, step_seconds, vocabulary_size
from uniaudio.configs.flops import is_cut, parameter_shapes, rank_count
from uniaudio.configs.load import load_config
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.model.model import MultiScaleTransformer

ALONE = ("parallel.data_parallel_size=1", "parallel.zero_stage=1")


def run(*overrides: str, name: str = "paper_1b") -> RunConfig:
    return load_config(RunConfig, name, folder="runs", overrides=overrides)


@pytest.mark.parametrize(("name", "codebooks"), [("paper", 3), ("paper", 8), ("released", 3), ("released", 5)])
def test_size_is_that_of_the_vocabulary(name, codebooks):
    assert vocabulary_size(ModelConfig(vocabulary=name, num_codebooks=codebooks)) == load_vocabulary(name, codebooks).size


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 16), ("bf16", 16)])
def test_states_are_those_of_the_real_parameters(precision, bytes_each):
    config = run(*ALONE, f"train.precision={precision}")
    with torch.device("meta"):
        model = MultiScaleTransformer(config.model, load_vocabulary("paper", 3), num_tasks=7, seed=None)
    real = bytes_each * sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert memory_gb(config).states == pytest.approx(real, rel=1e-6)


def test_zero_and_the_layout_cut_the_states():
    sixteen = "parallel.data_parallel_size=16"
    whole, zero1, zero2, zero3 = (memory_gb(run(sixteen, f"parallel.zero_stage={stage}", "train.precision=fp32")) for stage in (0, 1, 2, 3))
    assert zero1.optimizer == whole.optimizer / 16 and zero1.gradients == whole.gradients
    assert zero2.gradients == whole.gradients / 16 and zero2.weights == whole.weights
    assert zero3.states == pytest.approx(whole.states / 16)
    offloaded = run(sixteen, "parallel.zero_stage=2", "parallel.offload_optimizer=true")
    assert memory_gb(offloaded).optimizer == 0
    assert step_seconds(offloaded, gpu="H200").optimizer > 20 * step_seconds(run(sixteen), gpu="H200").optimizer

    bf16 = [memory_gb(run("parallel.zero_stage=1", *more)).gradients for more in (
        (*ALONE,), (*ALONE, "optim.gradient_accumulation=2"), (*ALONE, "parallel.data_parallel_size=2"))]  # fmt: skip
    assert bf16[1] == pytest.approx(3 * bf16[0]) and bf16[2] == pytest.approx(4 * bf16[0]), "2 bytes; 2 + 4; 2 + 4 + 4/2"
    cut = memory_gb(run("parallel.tensor_parallel_size=2", "parallel.pipeline_parallel_size=2", "parallel.data_parallel_size=4"))
    whole_weights = memory_gb(run()).weights
    assert 0.3 * whole_weights < cut.weights < 0.32 * whole_weights, "(a quarter of the parameters + half of the rest) / 2 stages"


def test_a_step_in_8_bits_is_planned_as_much_shorter_as_measured():
    """One H200, 16 k frames: 189.7 ms (docs/runs/paper_1b_h200)."""
    one = (*ALONE, "data.rows_per_micro_batch=8", "data.frames_per_row=2048", "optim.gradient_accumulation=1")
    plain, eight = (step_seconds(run(*one, f"train.fp8={fp8}"), gpu="H200") for fp8 in ("false", "true"))
    assert eight.total == pytest.approx(0.1897, rel=0.1) and plain.total == pytest.approx(0.2521, rel=0.1)


def test_weights_that_are_gathered_behind_the_forward_pass_take_no_time():
    """Four H200s, 65,536 frames a step: 273 ms with both halves of the exchange at the end, 14.6 of them its (docs/runs/layouts_4h200)."""
    four = ("parallel.data_parallel_size=4", "parallel.zero_stage=1", "data.rows_per_micro_batch=4", "data.frames_per_row=2048")
    hidden, shown, zero_2 = (
        step_seconds(run(*four, "optim.gradient_accumulation=2", *more), gpu="H200")
        for more in ((), ("train.cuda_graphs=false",), ("parallel.zero_stage=2",))
    )
    assert shown.data_parallel == pytest.approx(0.0146, rel=0.05)
    assert hidden.data_parallel == pytest.approx(shown.data_parallel * 4 / 6)
    assert zero_2.data_parallel == pytest.approx(shown.data_parallel)

    tensor = step_seconds(run(*four, "parallel.tensor_parallel_size=2"), gpu="H200")
    plain = step_seconds(run(*four, "parallel.tensor_parallel_size=2", "train.cuda_graphs=false"), gpu="H200")
    assert 4 / 6 < tensor.data_parallel / plain.data_parallel < 0.8, "what is whole on every rank is gathered at the step"
    short = (*four[:2], "data.rows_per_micro_batch=1", "data.frames_per_row=128", "optim.gradient_accumulation=1")
    slow, network = (step_seconds(run(*short, *more), gpu="H200", gpus_per_node=1) for more in ((), ("train.cuda_graphs=false",)))
    assert network.data_parallel - slow.data_parallel == pytest.approx(slow.compute / 3), "behind no more than there is of the pass"


@pytest.mark.parametrize(
    ("rows", "codebooks", "peak_gib"),
    [(16, 3, 42.5), (8, 8, 39.8)],  # plain PyTorch, pure bf16, torch.compile, rows of 1024 frames on one H100 (docs/clusters.md)
)
def test_sum_is_near_a_measured_peak(rows, codebooks, peak_gib):
    """That program keeps no fp32 master: 2 bytes of weight, 2 of gradient, 4 of moments a parameter."""
    estimate = memory_gb(run(*ALONE, f"data.rows_per_micro_batch={rows}", "data.frames_per_row=1024", f"model.num_codebooks={codebooks}"))
    pure_bf16 = estimate.states * 8 / 16 + estimate.activations
    assert pure_bf16 == pytest.approx(peak_gib * 1.0737, rel=0.05)


def test_recomputation_and_pipeline_change_the_activations():
    whole = memory_gb(run()).activations
    assert memory_gb(run("parallel.recompute=full")).activations < 0.13 * whole
    assert memory_gb(run("parallel.recompute=selective")).activations == pytest.approx(0.75 * whole)
    pipeline = ("parallel.pipeline_parallel_size=4", "optim.gradient_accumulation=8")
    assert memory_gb(run(*pipeline)).activations == pytest.approx(whole)  # a quarter of the layers, four micro-batches held
    assert memory_gb(run("data.rows_per_micro_batch=8")).activations == pytest.approx(2 * whole)


@pytest.mark.parametrize("codebooks", [3, 8])
def test_a_tensor_parallel_rank_holds_what_is_estimated(codebooks):
    """The parameters of the real model, without their memory: which are cut, and how many are left."""
    config = run(*ALONE, "parallel.tensor_parallel_size=2", f"model.num_codebooks={codebooks}")
    rows = padded_vocabulary_size(config.model)
    with torch.device("meta"):
        model = MultiScaleTransformer(config.model, load_vocabulary("paper", codebooks), num_tasks=7, seed=None)
    cut = {name for name, parameter in model.global_blocks.named_parameters(prefix="global_blocks") if hasattr(parameter, "partition_dim")}
    assert {name for name in parameter_shapes(config.model, rows) if is_cut(name)} == cut
    counts = {name: p.numel() / (1 + (name in cut)) for name, p in model.named_parameters()}
    assert rank_count(config, rows)[0] == sum(counts.values())
    in_common = sum(count for name, count in counts.items() if name not in cut)
    assert memory_gb(config).gradients == pytest.approx((2 * sum(counts.values()) + 4 * in_common) / 1e9), "fp32 of what is reduced"


def test_parts_are_said():
    assert "activations 19.3" in str(memory_gb(run(*ALONE)))


def test_time_of_a_step_is_that_of_the_measured_share_of_the_peak():
    """52,060 frames/s at 45.9 % (docs/runs/paper_1b_h100/report_16k.md)."""
    config = run(*ALONE, "data.rows_per_micro_batch=8")
    assert config.frames_per_step / seconds_per_step(config, gpu="H100", mfu=0.459) == pytest.approx(52_060, rel=0.01)
    assert padded_vocabulary_size(config.model) == 4224
