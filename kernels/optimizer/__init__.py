"""optimizer: gradient norm, accumulation, and clip + AdamW + cast over flat partitions."""

from uniaudio.kernels.optimizer.interface import AdamW, Segments, accumulate, adamw_step, square_sum

__all__ = ["AdamW", "Segments", "accumulate", "adamw_step", "square_sum"]
