"""Small layers whole on every rank: norm, linear map, table. Uninitialised: `init` gives every parameter its value."""

import torch
from torch import nn
from torch.nn import functional as F

from uniaudio.kernels.norm import add_layer_norm, branch_layer_norm, layer_norm
from uniaudio.pretrain.parallel.tensor import Backend


class LayerNorm(nn.Module):
    """LayerNorm over the last dimension, statistics in float32 whatever the parameters are."""

    def __init__(self, width: int, *, eps: float, backend: Backend) -> None:
        super().__init__()
        self.eps = eps
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        return layer_norm(x, self.weight, self.bias, self.eps, backend=self.backend)

    def branch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x, x): take the residual from here, so that the two gradients of x are added in one pass."""
        return branch_layer_norm(x, self.weight, self.bias, self.eps, backend=self.backend)

    def after_add(
        self, x: torch.Tensor, residual: torch.Tensor, *, x_bias: torch.Tensor | None = None, total_bias: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual), in one pass where the backend has one; the biases get their gradients here."""
        return add_layer_norm(x, residual, self.weight, self.bias, self.eps, x_bias=x_bias, total_bias=total_bias, backend=self.backend)


class Linear(nn.Module):
    """y = x W^T + b; weight (output, input)."""

    def __init__(self, input_width: int, output_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_width, input_width))
        self.bias = nn.Parameter(torch.empty(output_width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., input) -> (..., output)."""
        return F.linear(x, self.weight, self.bias)


class Table(nn.Module):
    """A learned vector a row: positions, levels. Owns the parameter alone: a look-up takes `weight` into one pass with the codes' table."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))
