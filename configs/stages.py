"""Which layers a pipeline stage holds: bounds from the FLOPs of each layer, and what tensor parallelism sends for it, so that the slowest
stage is as fast as it can be."""

from collections.abc import Sequence

from uniaudio.configs.flops import PEAK_FLOPS, layer_flops
from uniaudio.configs.run import RunConfig

# Measured on H100s and H200s (docs/training.md): what of the data sheet's peak the products and kernels of a step reach, and bytes/s that
# NVLink carries.
REACHED = 0.57
NVLINK_BYTES = 300e9
OPERATIONS_A_BYTE = REACHED * PEAK_FLOPS["H200"] / NVLINK_BYTES


def stage_bounds(run: RunConfig, vocabulary_size: int) -> list[int]:
    """Where each stage of the run's pipeline begins, and the number of layers: as configured, else balanced by operations."""
    if run.parallel.stage_bounds is not None:
        return list(run.parallel.stage_bounds)
    return balanced_bounds(layer_costs(run, vocabulary_size), run.parallel.pipeline_parallel_size)


def layer_costs(run: RunConfig, vocabulary_size: int) -> list[float]:
    """Time of each layer, in operations a frame: its own, and those that its tensor-parallel traffic would leave time for (the global
    blocks', which no product hides: docs/tensor_parallel.md)."""
    model = run.model
    costs = layer_flops(model, run.data.frames_per_row, vocabulary_size)
    sent = block_bytes(run) * model.steps_per_frame * run.parallel.tensor_parallel_size * OPERATIONS_A_BYTE
    return [cost + sent if 0 < index <= model.global_layers else cost for index, cost in enumerate(costs)]


def block_bytes(run: RunConfig) -> float:
    """What a tensor-parallel rank sends for a token of a global block: its part of the others' four times a pass, in 16 bits."""
    size = run.parallel.tensor_parallel_size
    crossings = 12 if run.parallel.recompute == "full" else 8
    return crossings * run.model.width * 2 * (size - 1) / size


def stage_layers(run: RunConfig, vocabulary_size: int, stage: int) -> range:
    """The layers of one stage."""
    bounds = stage_bounds(run, vocabulary_size)
    return range(bounds[stage], bounds[stage + 1])


def balanced_bounds(costs: Sequence[float], stages: int) -> list[int]:
    """`stages` + 1 ascending indices: stage s holds layers bounds[s]..bounds[s + 1]; each at least one, the greatest sum least.

    Exact, by dynamic programming over prefixes; among equals the earlier stages are the shorter ones.
    """
    count = len(costs)
    if not 1 <= stages <= count:
        raise ValueError(f"{stages} stages of {count} layers")
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    best = [prefix[:]]  # best[s][i]: the least greatest sum of the first i layers in s + 1 stages
    cuts: list[list[int]] = []
    for stage in range(1, stages):
        row, cut = [float("inf")] * (count + 1), [0] * (count + 1)
        for stop in range(stage + 1, count + 1):
            for start in range(stage, stop):
                worst = max(best[-1][start], prefix[stop] - prefix[start])
                if worst < row[stop]:
                    row[stop], cut[stop] = worst, start
        best.append(row)
        cuts.append(cut)
    bounds = [count]
    for cut in reversed(cuts):
        bounds.append(cut[bounds[-1]])
    return [0, *reversed(bounds)]
