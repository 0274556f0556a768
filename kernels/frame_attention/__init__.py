"""See interface.py."""

from uniaudio.kernels.frame_attention.interface import frame_attention

__all__ = ["frame_attention"]
