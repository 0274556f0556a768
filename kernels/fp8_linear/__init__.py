"""fp8_linear: linear maps with all three products in 8 bits, and the casts inside what makes their operands. See interface.py."""

from uniaudio.kernels.fp8_linear.interface import fp8_linear, fp8_mlp, fp8_norm_linear

__all__ = ["fp8_linear", "fp8_mlp", "fp8_norm_linear"]
