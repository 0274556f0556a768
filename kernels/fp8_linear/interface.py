"""fp8_linear: a linear layer whose product, and the gradient of whose input, are made of 8-bit operands with one scale a row.

Forward: rows of x (a token each) by rows of W (an output each). Gradient of x: rows of dy by columns of W. The gradient of W stays in the
layer's own precision: it sums over tokens, where a scale a token cannot follow. So two of three products run on fp8 tensor cores.
Owns the checks and the choice of path: `triton` quantises with a kernel and multiplies with torch._scaled_mm (Hopper and later), `torch`
does the same arithmetic in float32, anywhere.
"""

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_device, check_float, fault, interpreted
from uniaudio.kernels.fp8_linear import reference

MULTIPLE = 16  # of both widths, for the tensor cores


def fp8_linear(x: torch.Tensor, weight: torch.Tensor, *, backend: Backend) -> torch.Tensor:
    """x (..., K), weight (N, K) of one dtype -> (..., N) of that dtype.

    Raises:
        ValueError: wrong dtype, device, shape or stride.
    """
    op = "fp8_linear"
    check_backend(op, backend, x)
    check_float(op, backend, x=x, weight=weight)
    check_device(op, x=x, weight=weight)
    check_contiguous(op, x=x, weight=weight)
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise fault(op, "shapes of x and weight", seen=f"{tuple(x.shape)}, {tuple(weight.shape)}", allowed="(..., K), (N, K)")
    if weight.shape[0] % MULTIPLE or weight.shape[1] % MULTIPLE:
        raise fault(op, "shape of weight", seen=tuple(weight.shape), allowed=f"multiples of {MULTIPLE}")
    return _Fp8Linear.apply(x, weight, backend)


def _quantize(x: torch.Tensor, backend: Backend) -> tuple[torch.Tensor, torch.Tensor]:
    if backend == "torch":
        return reference.quantize_rows(x)
    from uniaudio.kernels.fp8_linear import triton_kernels

    return triton_kernels.quantize_rows(x)


def _product(
    a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype, backend: Backend
) -> torch.Tensor:
    """(R, N) in `dtype` from quantised rows of a (R, K) and b (N, K)."""
    if backend == "torch" or interpreted():
        return reference.scaled_product(*a, *b, dtype)
    return torch._scaled_mm(a[0], b[0].t(), scale_a=a[1], scale_b=b[1].t(), out_dtype=dtype, use_fast_accum=True)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, backend: Backend) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(x, weight)
        ctx.backend = backend  # type: ignore[attr-defined]
        return _product(_quantize(rows, backend), _quantize(weight, backend), x.dtype, backend).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        backend = ctx.backend  # type: ignore[attr-defined]
        rows = grad.reshape(-1, grad.shape[-1]).contiguous()
        columns = _quantize(weight.t().contiguous(), backend)
        grad_x = _product(_quantize(rows, backend), columns, x.dtype, backend).view(x.shape)
        return grad_x, rows.t() @ x.reshape(-1, x.shape[-1]), None
