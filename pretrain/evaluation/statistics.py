"""Means with 95 % bootstrap intervals over clips."""

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A mean, and where 95 % of the means of resampled clips lie. count: clips that had a value."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if not self.count:
            return "-"
        return f"{self.mean:.3g}" if self.count == 1 or math.isnan(self.low) else f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def weighted_mean(sums: np.ndarray, weights: np.ndarray, *, seed: int = 0) -> Interval:
    """sum(sums) / sum(weights) over clips; clips that are NaN or weigh nothing are left out. sums, weights (N,)."""
    sums, weights = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    kept = np.isfinite(sums) & (weights > 0)
    sums, weights = sums[kept], weights[kept]
    if not len(sums):
        return NOTHING
    picks = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[picks].sum(axis=1) / weights[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(sums.sum() / weights.sum()), float(low), float(high), len(sums))
