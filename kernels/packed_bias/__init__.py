"""See interface.py."""

from uniaudio.kernels.packed_bias.interface import packed_bias_gradient

__all__ = ["packed_bias_gradient"]
