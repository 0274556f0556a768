"""What a run will need, worked out from its config alone: memory of one GPU, time of a step. Arithmetic only: no torch, no files but YAML.

Read by `uniaudio submit` (a job that cannot fit never queues) and by whoever plans. Every number is a sum of named parts, so that a refusal
can say what is large. What is left out is said where it is left out; the sums are estimates from below.
"""

from dataclasses import asdict, dataclass

from uniaudio.configs.flops import PEAK_FLOPS, flops_per_frame, parameter_count
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.parallel import ParallelConfig
from uniaudio.configs.run import RunConfig
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

    States of a parameter: fp32 4 bytes of weight, 4 of gradient, 8 of Adam's moments; bf16 2, 2 and 12 (moments and the fp32 master copy).
    ZeRO cuts them over the data-parallel ranks: 1 the optimizer's, 2 the gradients too, 3 the weights too.
    """
    parallel = run.parallel
    parameters = parameter_count(run.model, padded_vocabulary_size(run.model, parallel))
    share = parameters / (parallel.tensor_parallel_size * parallel.pipeline_parallel_size) / 1e9
    weights, gradients, optimizer = (2.0, 2.0, 12.0) if run.train.precision == "bf16" else (4.0, 4.0, 8.0)
    cut = [parallel.data_parallel_size if parallel.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    return MemoryGB(share * weights / cut[0], share * gradients / cut[1], share * optimizer / cut[2], _activations_gb(run))


def _activations_gb(run: RunConfig) -> float:
    """What the blocks keep for the backward pass, of all micro-batches that a pipeline's first stage holds at once.

    A block keeps, for each of its tokens (a frame in the global stack, a code in the local one): its input, both norms' outputs, q, k, v,
    the attention's output, the sum behind it, and the MLP's inner values before and behind the activation. With `recompute: full` only its
    input, and all of the one block that is being computed again. Logits are never whole, so the head adds little.
    """
    model, parallel = run.model, run.parallel
    size = 2 if run.train.precision == "bf16" else 4
    tensor, stages = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    whole = size * (4 * model.width + (4 * model.width + 2 * model.ffn_width) / tensor)
    kept = size * model.width if parallel.recompute == "full" else whole
    frames = run.data.rows_per_micro_batch * run.data.frames_per_row
    tokens = frames * (model.global_layers + model.num_codebooks * model.local_layers) / stages
    held = min(stages, run.optim.gradient_accumulation)
    again = frames * model.num_codebooks * whole if parallel.recompute == "full" else 0.0
    return (tokens * held * kept + again) / 1e9


def seconds_per_step(run: RunConfig, *, gpu: str, mfu: float) -> float:
    """Time of an optimizer step on GPUs of that name, at this share of their peak (1: all of it)."""
    rows = padded_vocabulary_size(run.model, run.parallel)
    operations = run.frames_per_step * flops_per_frame(run.model, run.data.frames_per_row, rows)
    return operations / (run.parallel.world_size * PEAK_FLOPS[gpu] * mfu)
