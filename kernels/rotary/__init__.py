"""See interface.py."""

from uniaudio.kernels.rotary.interface import rotate

__all__ = ["rotate"]
