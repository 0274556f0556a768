"""See interface.py."""

from uniaudio.kernels.embedding.interface import frame_embedding

__all__ = ["frame_embedding"]
