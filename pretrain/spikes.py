"""What a training does about a step that went wrong: one that is not finite, and a loss that jumps."""

import math
import statistics
from collections import deque

WINDOW = 128  # losses that make up what is usual
LEAST = 32  # of them, before anything is judged


class SpikeDetector:
    """A loss far above the recent ones. `deviations`: how many standard deviations above their mean is too far; 0 switches it off."""

    def __init__(self, deviations: float) -> None:
        self.deviations = deviations
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def sees(self, loss: float) -> bool:
        """Whether this loss is a spike; one that is not becomes part of what is usual."""
        if not self.deviations or not math.isfinite(loss):
            return False
        if len(self._recent) >= LEAST and loss > self.limit:
            return True
        self._recent.append(loss)
        return False

    @property
    def limit(self) -> float:
        """The greatest loss that is usual."""
        return statistics.fmean(self._recent) + self.deviations * statistics.pstdev(self._recent)

    def forget(self) -> None:
        """After a rewind the old losses come again."""
        self._recent.clear()
