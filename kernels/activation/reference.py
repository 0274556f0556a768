"""Bias + GELU and SwiGLU in plain PyTorch."""

import torch
import torch.nn.functional as F

GELU_NAME = {"exact": "none", "tanh": "tanh"}


def bias_gelu(x: torch.Tensor, bias: torch.Tensor, approximate: str) -> torch.Tensor:
    """gelu(x + bias); exact: z * Phi(z); tanh: Hendrycks and Gimpel's approximation."""
    return F.gelu(x + bias, approximate=GELU_NAME[approximate])


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, where gate is the first half of the last axis and up the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
