"""See interface.py."""

from uniaudio.kernels.activation.interface import bias_gelu, swiglu

__all__ = ["bias_gelu", "swiglu"]
