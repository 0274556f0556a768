"""norm: LayerNorm and RMSNorm over the last axis, alone or with the residual addition before them in the same pass.

Owns the checks and the choice of path. `x` is (..., D) contiguous; weight and bias are (D,). All tensors have one dtype.
"""

import torch

from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_device, check_float, check_shape, fault
from uniaudio.kernels.norm import reference

MAX_WIDTH = 16_384


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, *, backend: Backend) -> torch.Tensor:
    """LayerNorm of x (..., D) with statistics in float32. Raises ValueError on wrong dtype, device, shape or stride."""
    _check("layer_norm", backend, x, None, weight, bias)
    if backend == "torch":
        return reference.layer_norm(x, weight, bias, eps)
    return _add_norm(x, None, weight, bias, eps)[0]


def branch_layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, *, backend: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    """(LayerNorm(x), x) where a residual branch leaves: the gradients of both branches are added inside the norm's backward pass."""
    _check("branch_layer_norm", backend, x, None, weight, bias)
    if backend == "torch":
        return reference.layer_norm(x, weight, bias, eps), x
    return _add_norm(x, None, weight, bias, eps)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    *,
    x_bias: torch.Tensor | None = None,
    total_bias: torch.Tensor | None = None,
    backend: Backend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(LayerNorm(x + residual), x + residual): the residual stream and its norm for the next layer, read and written once.

    Two biases (D,) get their gradients here, as sums over rows that the backward pass has at hand, instead of in passes of their own:
    `x_bias` is already in x; `total_bias` comes to the sum, and to nothing else, after this call. The caller adds both detached.
    """
    _check("add_layer_norm", backend, x, residual, weight, bias)
    for name, more in (("x_bias", x_bias), ("total_bias", total_bias)):
        if more is not None:
            check_shape("add_layer_norm", name, more, (x.shape[-1],))
            check_float("add_layer_norm", backend, x=x, **{name: more})
    if backend == "torch":
        return reference.add_layer_norm(x, residual, weight, bias, eps, x_bias, total_bias)
    from uniaudio.kernels.norm.triton_kernels import AddNorm  # here: the torch path works without Triton

    return AddNorm.apply(x, residual, weight, bias, eps, x_bias, total_bias)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, backend: Backend) -> torch.Tensor:
    """RMSNorm of x (..., D) with statistics in float32."""
    _check("rms_norm", backend, x, None, weight, None)
    if backend == "torch":
        return reference.rms_norm(x, weight, eps)
    return _add_norm(x, None, weight, None, eps)[0]


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, backend: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMSNorm(x + residual), x + residual)."""
    _check("add_rms_norm", backend, x, residual, weight, None)
    if backend == "torch":
        total = x + residual
        return reference.rms_norm(total, weight, eps), total
    return _add_norm(x, residual, weight, None, eps)


def _add_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from uniaudio.kernels.norm.triton_kernels import AddNorm  # here: the torch path works without Triton

    return AddNorm.apply(x, residual, weight, bias, eps, None, None)


def _check(op: str, backend: str, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    check_backend(op, backend, x)
    check_float(op, backend, x=x, residual=residual, weight=weight, bias=bias)
    check_device(op, x=x, residual=residual, weight=weight, bias=bias)
    if x.dim() == 0 or not 1 <= x.shape[-1] <= MAX_WIDTH:
        raise fault(op, "shape of x", seen=tuple(x.shape), allowed=f"(..., D) with D up to {MAX_WIDTH}")
    if residual is not None:
        check_shape(op, "residual", residual, tuple(x.shape))
    check_shape(op, "weight", weight, (x.shape[-1],))
    if bias is not None:
        check_shape(op, "bias", bias, (x.shape[-1],))
    check_contiguous(op, x=x, residual=residual, weight=weight, bias=bias)
