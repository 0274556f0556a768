"""See interface.py."""

from uniaudio.kernels.decode_attention.interface import decode_attention

__all__ = ["decode_attention"]
