"""Which layers a pipeline stage holds: bounds from the FLOPs of each layer, so that the slowest stage is as fast as it can be."""

from collections.abc import Sequence

from uniaudio.configs.flops import layer_flops
from uniaudio.configs.run import RunConfig


def stage_bounds(run: RunConfig, vocabulary_size: int) -> list[int]:
    """Where each stage of the run's pipeline begins, and the number of layers: as configured, else balanced by operations."""
    if run.parallel.stage_bounds is not None:
        return list(run.parallel.stage_bounds)
    return balanced_bounds(layer_flops(run.model, run.data.frames_per_row, vocabulary_size), run.parallel.pipeline_parallel_size)


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
