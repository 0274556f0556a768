"""See interface.py."""

from uniaudio.kernels.draw.interface import Number, Setting, draw

__all__ = ["Number", "Setting", "draw"]
