"""LayerNorm and RMSNorm in plain PyTorch: statistics in float32 (float64 for float64 input), result in the input's dtype."""

import torch
import torch.nn.functional as F


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    x_bias: torch.Tensor | None,
    total_bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(layer_norm(x + residual), x + residual); the two biases are there already, or come later: zeros with their gradients."""
    total = x + residual if x_bias is None else x + (x_bias - x_bias.detach()) + residual
    return layer_norm(total, weight, bias, eps), total if total_bias is None else total + (total_bias - total_bias.detach())
