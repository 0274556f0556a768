"""Tensors in 8 bits, and their product, in plain PyTorch: what the kernels and the tensor cores must equal, and the path of the CPU."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from uniaudio.kernels.activation import reference as activation
from uniaudio.kernels.fp8 import FP8, LARGEST, LEAST_SCALE
from uniaudio.kernels.norm import reference as norms

MULTIPLE = 16  # of what the tensor cores sum over
GELU_DEEPEST = 0.1701  # no value of gelu is below minus this
SLOPE_STEEPEST = 1.13  # nor one of its slope above this
MARGIN = 1.1  # of a bound of a product: its operands may have been rounded up by a 16th


class Eight(NamedTuple):
    """A tensor in 8 bits: e4m3 (R, K), its transpose (K, R filled up with zeros to a multiple of 16), and the scale of both.

    That is one float32 number, here once (1,); for the tensor cores, some of whose kernels read one a row, max(R, K) times.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    scale: torch.Tensor


def filled(rows: int) -> int:
    """Rows, to the next multiple of 16."""
    return -(-rows // MULTIPLE) * MULTIPLE


def turned(rows: torch.Tensor) -> torch.Tensor:
    """(R, K) of 8 bits -> (K, R filled up with zeros)."""
    return F.pad(rows.float().t(), (0, filled(rows.shape[0]) - rows.shape[0])).contiguous().to(rows.dtype)


def quantize(x: torch.Tensor, largest: torch.Tensor) -> Eight:
    """x (R, K) in units with which `largest` is 448."""
    scale = (largest.float() / LARGEST).clamp(min=LEAST_SCALE).view(1)
    rows = (x.float() / scale).clamp(-LARGEST, LARGEST).to(FP8)
    return Eight(rows, turned(rows), scale)


def cast(x: torch.Tensor) -> Eight:
    """x (R, K); its largest value becomes 448."""
    return quantize(x, x.abs().amax())


def cast_summed(x: torch.Tensor) -> tuple[Eight, torch.Tensor]:
    """`cast`, and the sum over rows (K,) in x's dtype."""
    return cast(x), x.float().sum(dim=0).to(x.dtype)


def reach(x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """The length () of the longest row of x (R, K), times `scale`: no product of a row with another is above both lengths' product."""
    longest = x.float().norm(dim=1).amax()
    return longest if scale is None else longest * scale[0]


def reach_cast(x: torch.Tensor) -> tuple[Eight, torch.Tensor]:
    """`cast`, and `reach` of x."""
    return cast(x), reach(x)


def norm_cast(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """(rows of LayerNorm(x + residual), their scale, what its gradient needs: x + residual first).

    No value of a norm of width D is above sqrt(D) max|weight| + max|bias|: that makes the scale, so no pass has to look for the largest.
    """
    total = x if residual is None else x + residual
    bound = x.shape[-1] ** 0.5 * weight.float().abs().amax() + bias.float().abs().amax()
    eight = quantize(norms.layer_norm(total.float(), weight.float(), bias.float(), eps), bound)
    return eight.rows, eight.scale, (total,)


def norm_gradient(
    kept: tuple[torch.Tensor, ...],
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    grad_normed: torch.Tensor,
    grad_total: torch.Tensor,
    *,
    sums: bool,
) -> tuple[torch.Tensor, ...]:
    """Gradients of x (and the residual), weight, bias; with `sums` also the sums over rows of the first and of `grad_total`."""
    with torch.enable_grad():
        total, factor, shift = leaves = [tensor.detach().requires_grad_() for tensor in (kept[0], weight, bias)]
        grads = torch.autograd.grad(norms.layer_norm(total, factor, shift, eps), leaves, grad_normed)
    grad_x = grads[0] + grad_total
    more = (grad_x.float().sum(dim=0).to(weight.dtype), grad_total.float().sum(dim=0).to(weight.dtype)) if sums else ()
    return grad_x, grads[1], grads[2], *more


def gelu_bound(norm_weight: torch.Tensor, norm_bias: torch.Tensor, bias: torch.Tensor, weight_reach: torch.Tensor) -> torch.Tensor:
    """A bound () of |gelu(W n + bias)| for any n that this LayerNorm can give: |gelu(z)| is below |z| or GELU_DEEPEST."""
    length = norm_weight.numel() ** 0.5 * norm_weight.float().abs().amax() + norm_bias.float().norm()
    return (length * weight_reach * MARGIN + bias.float().abs().amax()).clamp(min=GELU_DEEPEST)


def gelu_cast(x: torch.Tensor, bias: torch.Tensor, bound: torch.Tensor, exact: bool) -> Eight:
    """gelu(x + bias), x (R, K), in units with which its `bound` is 448."""
    return quantize(activation.bias_gelu(x.float(), bias.float(), "exact" if exact else "tanh"), bound)


def gelu_gradient_cast(
    x: torch.Tensor, bias: torch.Tensor, grad: torch.Tensor, grad_reach: torch.Tensor, weight_reach: torch.Tensor, exact: bool
) -> tuple[Eight, torch.Tensor]:
    """The gradient of x (R, K) through gelu(x + bias), and that of bias in its dtype.

    `grad` is a product of rows whose longest have these lengths, which bound it; its largest value need not be looked for.
    """
    with torch.enable_grad():
        z = (x.float() + bias.float()).requires_grad_()
        (slope,) = torch.autograd.grad(F.gelu(z, approximate="none" if exact else "tanh").sum(), z)
    values = grad.float() * slope
    return quantize(values, SLOPE_STEEPEST * MARGIN * grad_reach * weight_reach), values.sum(dim=0).to(bias.dtype)


def product(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    *,
    over_tokens: bool = False,
) -> torch.Tensor:
    """(R, N) = (a a_scale) (b b_scale)^T + bias of a (R, K) and b (N, K), summed in float32, in `dtype`; `over_tokens`: K are tokens."""
    result = (a.float() @ b.float().t()) * (a_scale[0] * b_scale[0])
    return (result if bias is None else result + bias.float()).to(dtype)
