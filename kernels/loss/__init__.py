"""See interface.py."""

from uniaudio.kernels.loss.interface import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
