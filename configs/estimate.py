"""What a run will need, worked out from its config alone: memory of one GPU, time of a step. Arithmetic only: no torch, no files but YAML.

Read by `uniaudio submit` (a job that cannot fit never queues) and by whoever plans. Every number is a sum of named parts, so that a refusal
can say what is large. What is left out is said where it is left out; the sums are estimates from below.
"""

import itertools
import math
from dataclasses import asdict, dataclass

from uniaudio.configs.flops import PEAK_FLOPS, adapter_shapes, flops_per_frame, layer_flops, parameter_shapes, trained_count
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.parallel import ParallelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.configs.stages import stage_bounds
from uniaudio.configs.vocabulary import load_table

_ROWS_MULTIPLE = 128  # vocabulary tables are padded to a multiple of this x tensor-parallel size


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


def padded_vocabulary_size(model: ModelConfig, parallel: ParallelConfig) -> int:
    """Rows that are held and multiplied."""
    multiple = _ROWS_MULTIPLE * parallel.tensor_parallel_size
    return -(-vocabulary_size(model) // multiple) * multiple


def memory_gb(run: RunConfig) -> MemoryGB:
    """One GPU's share. Of a pipeline: an even share of the layers (the stage bounds follow the operations, so it is near that).

    States of a parameter: fp32 4 bytes of weight, 4 of gradient, 8 of Adam's moments; bf16 2, 2 and 12 (moments and the fp32 master copy);
    frozen: the weight alone. ZeRO cuts them over the data-parallel ranks: 1 the optimizer's, 2 the gradients too, 3 the weights too.
    bf16 under ZeRO-1 adds fp32 gradients of the whole share and what a rank receives of them, but in one process with one micro-batch.
    """
    parallel = run.parallel
    counts = trained_count(run, padded_vocabulary_size(run.model, parallel))
    share, frozen = (count / (parallel.tensor_parallel_size * parallel.pipeline_parallel_size) / 1e9 for count in counts)
    weights, gradients, optimizer = (2.0, 2.0, 12.0) if run.train.precision == "bf16" else (4.0, 4.0, 8.0)
    data = parallel.data_parallel_size
    alone = run.optim.gradient_accumulation == data == parallel.pipeline_parallel_size == 1
    if run.train.precision == "bf16" and parallel.zero_stage == 1 and not alone:
        gradients += 4.0 + (4.0 / data if data > 1 else 0.0)
    cut = [data if parallel.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    return MemoryGB((share + frozen) * weights / cut[0], share * gradients / cut[1], share * optimizer / cut[2], _activations_gb(run))


def _activations_gb(run: RunConfig) -> float:
    """What the blocks keep for the backward pass, of all micro-batches that a pipeline's first stage holds at once.

    A block keeps, for each of its tokens (a frame in the global stack, a code in the local one): its input, both norms' outputs, q, k, v,
    the attention's output, the sum behind it, and the MLP's inner values before and behind the activation. With `recompute: selective`
    those behind it are not kept; with `full` only the block's input, and all of the one block that is being computed again. Logits are
    never whole, so the head adds little.
    """
    model, parallel = run.model, run.parallel
    size = 2 if run.train.precision == "bf16" else 4
    tensor, stages = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    whole = size * (4 * model.width + (4 * model.width + 2 * model.ffn_width) / tensor)
    kept = {"none": whole, "selective": whole - size * model.ffn_width / tensor, "full": size * model.width}[parallel.recompute]
    frames = run.data.rows_per_micro_batch * run.data.frames_per_row
    tokens = frames * (model.steps_per_frame * model.global_layers + model.num_codebooks * model.local_layers) / stages
    held = min(stages, run.optim.gradient_accumulation)
    again = frames * model.num_codebooks * whole if parallel.recompute == "full" else 0.0
    return (tokens * held * kept + again) / 1e9


def seconds_per_step(run: RunConfig, *, gpu: str, mfu: float) -> float:
    """Time of an optimizer step on GPUs of that name, at this share of their peak (1: all of it)."""
    rows = padded_vocabulary_size(run.model, run.parallel)
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


# Measured on H100s (docs/training.md): what of the data sheet's peak the products and kernels of a step reach, bytes/s of its memory, and
# what the host adds to a step. Bytes/s of an all-reduce inside a node (NVLink) and of one GPU's share of a 400 Gb/s network.
_REACHED = 0.57
_MEMORY_BYTES = 2.97e12
_HOST_SECONDS = 0.02
_NVLINK_BYTES, _NETWORK_BYTES = 300e9, 40e9
_OPTIMIZER_BYTES = 28  # of a parameter: gradient, master and moments read; master, moments and weight written


@dataclass(frozen=True)
class StepSeconds:
    """Parts of an optimizer step's time; what overlaps is counted as if it did not."""

    compute: float
    bubble: float
    tensor_parallel: float
    data_parallel: float
    optimizer: float
    host: float

    @property
    def total(self) -> float:
        """The step."""
        return sum(asdict(self).values())


def bubble_share(run: RunConfig) -> float:
    """Idle share of a pipeline's step (1F1B): (stages - 1) / (micro-batches + stages - 1), with the slowest stage setting the pace."""
    stages = run.parallel.pipeline_parallel_size
    if stages == 1:
        return 0.0
    costs = layer_flops(run.model, run.data.frames_per_row, padded_vocabulary_size(run.model, run.parallel))
    bounds = stage_bounds(run, vocabulary_size(run.model))
    slowest = max(sum(costs[start:stop]) for start, stop in itertools.pairwise(bounds))
    micro_batches = run.optim.gradient_accumulation
    return 1 - sum(costs) * micro_batches / (stages * slowest * (micro_batches + stages - 1))


def step_seconds(run: RunConfig, *, gpu: str, gpus_per_node: int = 8) -> StepSeconds:
    """Time of one optimizer step, in parts."""
    parallel, model = run.parallel, run.model
    tensor, stages, data = parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.data_parallel_size
    again = {"none": 1.0, "selective": 1.01, "full": 4 / 3}[parallel.recompute]
    compute = seconds_per_step(run, gpu=gpu, mfu=_REACHED) * again
    bubble = bubble_share(run)
    tokens = run.frames_per_step / data * (model.global_layers + model.num_codebooks * model.local_layers) / stages
    crossings = (6 if parallel.recompute == "full" else 4) if tensor > 1 else 0  # all-reduces of a block: two forward, two backward
    moved = crossings * tokens * model.width * 2 * 2 * (tensor - 1) / tensor
    parameters = trained_count(run, padded_vocabulary_size(model, parallel))[0] / (tensor * stages)
    inside = parallel.world_size <= gpus_per_node
    exchanged = parameters * (4 + 2) * (data - 1) / data  # fp32 gradients scattered, bf16 weights gathered
    owned = parameters / (data if parallel.zero_stage else 1)
    return StepSeconds(
        compute,
        compute * bubble / (1 - bubble),
        moved / _NVLINK_BYTES,
        exchanged / (_NVLINK_BYTES if inside else _NETWORK_BYTES),
        owned * _OPTIMIZER_BYTES / _MEMORY_BYTES,
        _HOST_SECONDS,
    )
