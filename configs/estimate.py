"""What a run will need, worked out from its config alone: memory of one GPU, time of a step. Arithmetic only: no torch, no files but YAML.

Read by `uniaudio submit` (a job that cannot fit never queues) and by whoever plans. Every number is a sum of named parts, so that a refusal
can say what is large. What is left out is said where it is left out; the sums are estimates from below.
"""

import itertools
import math
from dataclasses import asdict, dataclass

from uniaudio.configs.flops import (
    PEAK_FLOPS,
    adapter_shapes,
    flops_per_frame,
    parameter_shapes,
    rank_count,
    trained_count,
    whole_count,
)
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.rules import wants_graphs
from uniaudio.configs.run import RunConfig
from uniaudio.configs.stages import NVLINK_BYTES, REACHED, block_bytes, layer_costs, stage_bounds
from uniaudio.configs.vocabulary import load_table

_ROWS_MULTIPLE = 128  # vocabulary tables are padded to a multiple of this


@dataclass(frozen=True)
class MemoryGB:
    """Parts of one GPU's memory in GB (1e9 bytes); left out: CUDA's context, communication buffers, fragmentation."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def states(self) -> float:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """The peak, at the end of the forward pass."""
        return self.states + self.activations

    def __str__(self) -> str:
        return " + ".join(f"{name} {value:.1f}" for name, value in asdict(self).items()) + f" = {self.total:.1f} GB"


def vocabulary_size(model: ModelConfig) -> int:
    """V of the model's table; `pretrain.data.vocabulary.load_vocabulary` numbers the ids themselves."""
    table = load_table(model.vocabulary)
    ranges = table.ranges(model.num_codebooks)
    return table.reserved + sum(entries * levels for _, _, entries, levels in ranges) + (table.audio_mask == "audio")


def padded_vocabulary_size(model: ModelConfig) -> int:
    """Rows that are held and multiplied."""
    return -(-vocabulary_size(model) // _ROWS_MULTIPLE) * _ROWS_MULTIPLE


def memory_gb(run: RunConfig) -> MemoryGB:
    """One GPU's share. Of a pipeline: an even share of the layers (the stage bounds follow the operations, so it is near that). Of tensor
    parallelism: its part of the global blocks, and all of the rest.

    States of a parameter: fp32 4 bytes of weight, 4 of gradient, 8 of Adam's moments; bf16 2, 2 and 12 (moments and the fp32 master copy);
    frozen: the weight alone. ZeRO cuts them over the data-parallel ranks: 1 the optimizer's, 2 the gradients too, 3 the weights too.
    bf16 under ZeRO-1 adds fp32 gradients of the whole share and what a rank receives of them; with one micro-batch and no other
    data-parallel rank only of what tensor-parallel ranks have in common. An optimizer on the host has nothing here.
    """
    parallel = run.parallel
    rows = padded_vocabulary_size(run.model)
    share, frozen = (count / parallel.pipeline_parallel_size / 1e9 for count in rank_count(run, rows))
    weights, gradients, optimizer = (2.0, 2.0, 12.0) if run.train.precision == "bf16" else (4.0, 4.0, 8.0)
    data = parallel.data_parallel_size
    alone = run.optim.gradient_accumulation == data == parallel.pipeline_parallel_size == 1
    in_common = 0.0
    if run.train.precision == "bf16" and parallel.zero_stage == 1:
        if not alone:
            gradients += 4.0 + (4.0 / data if data > 1 else 0.0)
        elif parallel.tensor_parallel_size > 1:
            in_common = 4.0 * whole_count(run, rows) / 1e9
    if parallel.offload_optimizer:
        optimizer = 0.0
    cut = [data if parallel.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    return MemoryGB(
        (share + frozen) * weights / cut[0], share * gradients / cut[1] + in_common, share * optimizer / cut[2], _activations_gb(run)
    )


def _activations_gb(run: RunConfig) -> float:
    """What the blocks keep for the backward pass, of all micro-batches that a pipeline's first stage holds at once.

    A block keeps, for each of its tokens (a frame in the global stack, a code in the local one): its input, both norms' outputs, q, k, v,
    the attention's output, the sum behind it, and the MLP's inner values before and behind the activation. With `recompute: selective`
    those behind it are not kept; with `full` only the block's input, and all of the one block that is being computed again. Logits are
    never whole, so the head adds little. A tensor-parallel rank has its own frames of all that; in the global stack all frames of both
    norms' outputs, and of its part of what lies between the products.
    """
    model, parallel = run.model, run.parallel
    size = 2 if run.train.precision == "bf16" else 4
    tensor, stages = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    block = size * (8 * model.width + 2 * model.ffn_width)
    saved = {"none": 0, "selective": size * model.ffn_width, "full": block - size * model.width}[parallel.recompute]
    gathered = size * 2 * model.width * (tensor - 1) if parallel.recompute != "full" else 0
    frames = run.data.rows_per_micro_batch * run.data.frames_per_row / tensor
    of_global = model.steps_per_frame * model.global_layers * (block - saved + gathered)
    of_local = model.num_codebooks * model.local_layers * (block - saved)
    held = min(stages, run.optim.gradient_accumulation)
    again = model.num_codebooks * block if parallel.recompute == "full" else 0.0
    return frames * ((of_global + of_local) / stages * held + again) / 1e9


def seconds_per_step(run: RunConfig, *, gpu: str, mfu: float) -> float:
    """Time of an optimizer step on GPUs of that name, at this share of their peak (1: all of it)."""
    rows = padded_vocabulary_size(run.model)
    operations = run.frames_per_step * frame_flops(run, rows)
    return operations / (run.parallel.world_size * PEAK_FLOPS[gpu] * mfu)


def frame_flops(run: RunConfig, rows: int) -> float:
    """Training operations a frame with vocabulary tables of `rows` rows: as `flops_per_frame`, but a frozen matrix of a block needs no
    gradient of its own, and an adapter is two thin products."""
    shapes = parameter_shapes(run.model, 1)
    adapters = adapter_shapes(run.finetune, shapes)
    codes = {"global_blocks": 1, "local_blocks": run.model.num_codebooks}
    operations = flops_per_frame(run.model, run.data.frames_per_row, rows)
    for name, shape in (shapes | adapters).items():
        if len(shape) == 2 and (times := codes.get(name.split(".")[0])):
            saved = 0 if run.finetune.trains(name) else -2
            operations += times * math.prod(shape) * (6 if name in adapters else saved)
    return operations


# Measured on H100s and H200s (docs/training.md): bytes/s of memory, and what the host adds to a step that it launches kernel by kernel, or
# as CUDA graphs. Bytes/s of one GPU's share of a 400 Gb/s network.
_MEMORY_BYTES = 2.97e12
_HOST_SECONDS, _HOST_SECONDS_OF_GRAPHS = 0.02, 0.002
_NETWORK_BYTES = 40e9
_SCATTERED_BYTES, _GATHERED_BYTES = 4, 2  # of a parameter between data-parallel ranks: fp32 gradients, bf16 weights
_OPTIMIZER_BYTES = 28  # of a parameter: gradient, master and moments read; master, moments and weight written
_SECONDS_ON_THE_HOST = 0.3e-9  # of a parameter, on 64 cores
_SECONDS_OF_ZERO_2 = (
    70e-12  # of a parameter and micro-batch: DeepSpeed takes the gradients in (docs/runs/offload_h200.jsonl, README.md there)
)
_FP8_SPEEDUP = 1.3  # of the passes, at paper_1b's width


@dataclass(frozen=True)
class StepSeconds:
    """Parts of an optimizer step's time; what overlaps is counted as if it did not, but for weights gathered behind the forward pass."""

    compute: float
    bubble: float
    tensor_parallel: float
    data_parallel: float
    optimizer: float
    host: float
    deepspeed: float = 0.0

    @property
    def total(self) -> float:
        """The step."""
        return sum(asdict(self).values())


def bubble_share(run: RunConfig) -> float:
    """Idle share of a pipeline's step (1F1B): (stages - 1) / (micro-batches + stages - 1), with the slowest stage setting the pace."""
    stages = run.parallel.pipeline_parallel_size
    if stages == 1:
        return 0.0
    costs = layer_costs(run, padded_vocabulary_size(run.model))
    bounds = stage_bounds(run, vocabulary_size(run.model))
    slowest = max(sum(costs[start:stop]) for start, stop in itertools.pairwise(bounds))
    micro_batches = run.optim.gradient_accumulation
    return 1 - sum(costs) * micro_batches / (stages * slowest * (micro_batches + stages - 1))


def _tensor_parallel_bytes(run: RunConfig, rows: int) -> float:
    """What a rank sends to the others of its tensor-parallel group in a step.

    Tokens of the global blocks (`stages.block_bytes`); and gradients of what is whole on every rank: in fp32 once a step
    under ZeRO-1 (scattered before the data-parallel ranks exchange them and gathered behind it, as are the bf16 weights), by micro-batch
    under ZeRO-2 and 3.
    """
    parallel, model = run.parallel, run.model
    size, stages, data = parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.data_parallel_size
    tokens = run.frames_per_step / data * model.steps_per_frame * model.global_layers / stages
    of_whole: float = 4 * run.optim.gradient_accumulation
    if parallel.zero_stage == 1:
        of_whole = 4 + 4 / data + (2 if data > 1 else 0)
    return tokens * block_bytes(run) + of_whole * whole_count(run, rows) / stages * (size - 1) / size


def step_seconds(run: RunConfig, *, gpu: str, gpus_per_node: int = 8) -> StepSeconds:
    """Time of one optimizer step, in parts."""
    parallel, model = run.parallel, run.model
    tensor, stages, data = parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.data_parallel_size
    again = {"none": 1.0, "selective": 1.01, "full": 4 / 3}[parallel.recompute]
    compute = seconds_per_step(run, gpu=gpu, mfu=REACHED) * again / (_FP8_SPEEDUP if run.train.fp8 else 1.0)
    bubble = bubble_share(run)
    rows = padded_vocabulary_size(model)
    moved = _tensor_parallel_bytes(run, rows)
    parameters = rank_count(run, rows)[0] / stages
    inside = parallel.world_size <= gpus_per_node
    carried = trained_count(run, rows)[0] / (tensor * stages) if parallel.zero_stage == 1 else parameters
    link = NVLINK_BYTES if inside else _NETWORK_BYTES
    scattered, gathered = (carried * size * (data - 1) / data / link for size in (_SCATTERED_BYTES, _GATHERED_BYTES))
    if parallel.zero_stage == 1 and wants_graphs(run):  # as long as the next step's first forward pass is; not what is whole on every rank
        behind = 1 - (whole_count(run, rows) / stages / tensor / carried if tensor > 1 else 0.0)
        gathered -= min(gathered * behind, compute / 3 / run.optim.gradient_accumulation)
    owned = parameters / (data if parallel.zero_stage else 1)
    return StepSeconds(
        compute,
        (compute + moved / NVLINK_BYTES) * bubble / (1 - bubble),
        moved / NVLINK_BYTES,
        scattered + gathered,
        owned * (_SECONDS_ON_THE_HOST if parallel.offload_optimizer else _OPTIMIZER_BYTES / _MEMORY_BYTES),
        _HOST_SECONDS_OF_GRAPHS if wants_graphs(run) else _HOST_SECONDS,
        parameters * run.optim.gradient_accumulation * _SECONDS_OF_ZERO_2 if parallel.zero_stage >= 2 else 0.0,
    )


def not_modelled(run: RunConfig) -> str | None:
    """What a step's time leaves out for this layout; None: it follows layouts that were measured."""
    parallel = run.parallel
    if parallel.zero_stage == 3:
        return "ZeRO-3: weights that are gathered layer by layer are not in this time, and were never measured; a step takes longer"
    if parallel.zero_stage == 2 and parallel.world_size > 1:
        return "ZeRO-2: measured on one GPU alone (docs/runs/offload_h200.jsonl); what several exchange by micro-batch is not in this time"
    return None
