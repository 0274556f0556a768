"""fp8_linear: a linear map, a norm with the map behind it, and a block's whole second half, with products of 8-bit operands.

y = x W^T, dx = dy W and dW = dy^T x all take e4m3 operands with one scale a tensor, from the tensor's own largest value or a bound of it:
no history, so nothing for a checkpoint to carry. Biases, norms, activation and sums stay in the layer's own precision and float32.
Owns the checks and the choice of path: `triton` casts with kernels and multiplies with torch._scaled_mm (Hopper and later), `torch` does
the same arithmetic in float32, anywhere.
"""

from types import ModuleType
from typing import Literal

import torch

from uniaudio.kernels.activation.reference import GELU_NAME
from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_device, check_float, check_shape, fault
from uniaudio.kernels.fp8_linear import reference
from uniaudio.kernels.fp8_linear.autograd import Linear, Mlp, NormLinear


def fp8_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, backend: Backend) -> torch.Tensor:
    """x (..., K), weight (N, K), bias (N,), of one dtype -> x W^T + bias (..., N) of that dtype.

    Raises:
        ValueError: wrong dtype, device, shape or stride.
    """
    op = "fp8_linear"
    _check(op, backend, x, {"weight": weight}, bias=bias)
    if bias is not None:
        check_shape(op, "bias", bias, (weight.shape[0],))
    out = Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, _ops(backend))
    return out.view(*x.shape[:-1], weight.shape[0])


def fp8_norm_linear(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    backend: Backend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(LayerNorm(x) W^T + bias (..., N), x) of x (..., D), weight (N, D): the residual branch leaves here. Raises as `fp8_linear`."""
    op = "fp8_norm_linear"
    _check(op, backend, x, {"weight": weight}, norm_weight=norm_weight, norm_bias=norm_bias, bias=bias)
    _check_norm(op, x, norm_weight, norm_bias)
    if bias is not None:
        check_shape(op, "bias", bias, (weight.shape[0],))
    rows = x.reshape(-1, x.shape[-1])
    out, rows = NormLinear.apply(rows, norm_weight, norm_bias, eps, weight, bias, _ops(backend))
    return out.view(*x.shape[:-1], weight.shape[0]), rows.view(x.shape)


def fp8_mlp(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    up: tuple[torch.Tensor, torch.Tensor],
    down: tuple[torch.Tensor, torch.Tensor],
    *,
    x_bias: torch.Tensor,
    approximate: Literal["exact", "tanh"],
    recompute: bool,
    backend: Backend,
) -> torch.Tensor:
    """total + down(gelu(up(LayerNorm(total)))) of total = x + residual, both (..., D); up and down are (weight, bias).

    x_bias: (D,) is in x already, added detached, and gets its gradient here. recompute: gelu is computed again in the backward pass, from
    up's product. Raises as `fp8_linear`, and on a wrong form of GELU.
    """
    op = "fp8_mlp"
    if approximate not in GELU_NAME:
        raise fault(op, "approximate", seen=approximate, allowed=", ".join(GELU_NAME))
    more = {"residual": residual, "norm_weight": norm_weight, "norm_bias": norm_bias, "x_bias": x_bias}
    _check(op, backend, x, {"up": up[0]}, **more, down=down[0], up_bias=up[1], down_bias=down[1])
    _check_norm(op, x, norm_weight, norm_bias)
    check_shape(op, "residual", residual, tuple(x.shape))
    check_shape(op, "down", down[0], (x.shape[-1], up[0].shape[0]))
    for name, bias, width in (("up_bias", up[1], up[0].shape[0]), ("down_bias", down[1], x.shape[-1]), ("x_bias", x_bias, x.shape[-1])):
        check_shape(op, name, bias, (width,))
    rows = (tensor.reshape(-1, x.shape[-1]) for tensor in (x, residual))
    out = Mlp.apply(*rows, norm_weight, norm_bias, eps, *up, *down, x_bias, approximate == "exact", recompute, _ops(backend))
    return out.view(x.shape)


def _ops(backend: Backend) -> ModuleType:
    if backend == "torch":
        return reference
    from uniaudio.kernels.fp8_linear import triton_kernels  # here: the torch path works without Triton

    return triton_kernels


def _check(op: str, backend: str, x: torch.Tensor, weights: dict[str, torch.Tensor], **more: torch.Tensor | None) -> None:
    check_backend(op, backend, x)
    check_float(op, backend, x=x, **weights, **more)
    check_device(op, x=x, **weights, **more)
    check_contiguous(op, x=x, **weights, **more)
    for name, weight in weights.items():
        if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
            raise fault(op, f"shapes of x and {name}", seen=f"{tuple(x.shape)}, {tuple(weight.shape)}", allowed="(..., K), (N, K)")
        if weight.shape[0] % reference.MULTIPLE or weight.shape[1] % reference.MULTIPLE:
            raise fault(op, f"shape of {name}", seen=tuple(weight.shape), allowed=f"multiples of {reference.MULTIPLE}")


def _check_norm(op: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    check_shape(op, "norm_weight", weight, (x.shape[-1],))
    check_shape(op, "norm_bias", bias, (x.shape[-1],))
