"""See interface.py."""

from uniaudio.kernels.decode_linear.interface import decode_linear

__all__ = ["decode_linear"]
