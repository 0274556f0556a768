"""optimizer: gradient norm, accumulation, and clip + AdamW + cast over flat partitions."""

from uniaudio.kernels.optimizer.interface import Segments, accumulate, adamw_step, square_sum
from uniaudio.kernels.optimizer.reference import AdamW

__all__ = ["AdamW", "Segments", "accumulate", "adamw_step", "square_sum"]
