"""See interface.py."""

from uniaudio.kernels.varlen_attention.interface import varlen_attention

__all__ = ["varlen_attention"]
