"""Which layers a pipeline stage holds: bounds from the FLOPs of each layer, so that the slowest stage is as fast as it can be."""

from collections.abc import Sequence


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
