"""fp8_linear: y = x W^T with both operands in 8 bits, one scale a row."""

from uniaudio.kernels.fp8_linear.interface import fp8_linear

__all__ = ["fp8_linear"]
