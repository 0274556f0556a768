"""See interface.py."""

from uniaudio.kernels.norm.interface import add_layer_norm, add_rms_norm, branch_layer_norm, layer_norm, rms_norm

__all__ = ["add_layer_norm", "add_rms_norm", "branch_layer_norm", "layer_norm", "rms_norm"]
