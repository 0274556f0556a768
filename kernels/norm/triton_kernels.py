"""LayerNorm and RMSNorm in Triton, with the residual addition before them where there is one, forward and backward.

Statistics are float32. The forward pass stores mean and 1/std of each row; the backward pass reads the normed tensor's input once, gives
one gradient for x and residual alike, and sums the gradients of weight and bias over a fixed set of rows per program, so that they are
deterministic. R rows of width D.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

from uniaudio.kernels.checks import interpreted
from uniaudio.kernels.column_sum import column_sum
from uniaudio.kernels.device import streaming_multiprocessors
from uniaudio.kernels.fp8 import FP8, LARGEST, LEAST_SCALE
from uniaudio.kernels.fp8_rounding import to_fp8


@triton.jit
def _forward(
    x, residual, weight, bias, normed, total, means, scales, unit, count, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CENTERED: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    EIGHT: tl.constexpr, BY_HAND: tl.constexpr, ROOT: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (cols < D)[None, :]
    offsets = row[:, None] * D + cols[None, :]
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
        # The norm sees the sum as it is stored: what the backward pass, and plain PyTorch, see.
        stored = values.to(total.dtype.element_ty)
        tl.store(total + offsets, stored, mask=inside)
        values = stored.to(tl.float32)
    if CENTERED:
        mean = tl.sum(values, axis=1) / D
        values = tl.where(inside, values - mean[:, None], 0.0)
        tl.store(means + row, mean, mask=row < count)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / D + eps)
    tl.store(scales + row, scale, mask=row < count)
    factor = tl.load(weight + cols, mask=cols < D, other=0.0).to(tl.float32)
    result = values * scale[:, None] * factor[None, :]
    if EIGHT:
        bound = ROOT * tl.max(tl.abs(factor), axis=0)
    if CENTERED:
        shift = tl.load(bias + cols, mask=cols < D, other=0.0).to(tl.float32)
        result += shift[None, :]
        if EIGHT:
            bound += tl.max(tl.abs(shift), axis=0)
    if EIGHT:  # no value is above the bound, so no pass over them looks for the largest
        one = tl.maximum(bound / LARGEST, LEAST)
        tl.store(normed + offsets, to_fp8(result * (1.0 / one), BY_HAND), mask=inside)
        tl.store(unit + row, tl.zeros((ROWS,), tl.float32) + one, mask=row < count)
    else:
        tl.store(normed + offsets, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    total, weight, means, scales, grad_normed, grad_total, grad_x, parts, count, rows_a_program,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CENTERED: tl.constexpr, HAS_GRAD_TOTAL: tl.constexpr,
    SUM_X: tl.constexpr, SUM_TOTAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    factor = tl.load(weight + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
    weight_sum = tl.zeros((ROWS, WIDTH), tl.float32)
    bias_sum = tl.zeros((ROWS, WIDTH), tl.float32)
    x_sum = tl.zeros((ROWS, WIDTH), tl.float32)
    total_sum = tl.zeros((ROWS, WIDTH), tl.float32)
    end = tl.minimum((program + 1) * rows_a_program, count)
    for first in tl.range(program * rows_a_program, end, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        here = row < end
        inside = here[:, None] & (cols < D)[None, :]
        offsets = row[:, None] * D + cols[None, :]
        values = tl.load(total + offsets, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_normed + offsets, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row, mask=here, other=0.0)[:, None]
        if CENTERED:
            values = tl.where(inside, values - tl.load(means + row, mask=here, other=0.0)[:, None], 0.0)
        unit = values * scale
        weight_sum += grad * unit
        grad_unit = grad * factor
        result = grad_unit - unit * (tl.sum(grad_unit * unit, axis=1) / D)[:, None]
        if CENTERED:
            bias_sum += grad
            result -= (tl.sum(grad_unit, axis=1) / D)[:, None]
        result *= scale
        if HAS_GRAD_TOTAL:
            more = tl.load(grad_total + offsets, mask=inside, other=0.0).to(tl.float32)
            result += more
            if SUM_TOTAL:
                total_sum += more
        if SUM_X:
            x_sum += tl.where(inside, result, 0.0)
        tl.store(grad_x + offsets, result.to(grad_x.dtype.element_ty), mask=inside)
    SUMS: tl.constexpr = 1 + (1 if CENTERED else 0) + (1 if SUM_X else 0) + (1 if SUM_TOTAL else 0)
    place = parts + program * SUMS * D + cols
    tl.store(place, tl.sum(weight_sum, axis=0), mask=cols < D)
    if CENTERED:
        place += D
        tl.store(place, tl.sum(bias_sum, axis=0), mask=cols < D)
    if SUM_X:
        place += D
        tl.store(place, tl.sum(x_sum, axis=0), mask=cols < D)
    if SUM_TOTAL:
        place += D
        tl.store(place, tl.sum(total_sum, axis=0), mask=cols < D)


@dataclass(frozen=True)
class Launch:
    """Rows a tile, warps, and for the backward pass programs a multiprocessor and tiles in flight of each."""

    rows: int
    warps: int
    programs_an_sm: int = 1
    stages: int = 1


def default_launch(width: int, *, backward: bool) -> Launch:
    """The launches measured best at width 1536 on an H200 (kernels/README.md), with as many elements a thread at other widths."""
    padded = _padded(width)
    if backward:
        rows = max(1, 2048 // padded)
        programs, stages = (2, 5) if padded <= 2048 else (1, 4 if padded <= 4096 else 1)  # what shared memory holds of tiles in flight
        return Launch(rows, min(16, max(1, padded * rows // 512)), programs, stages)
    rows = max(1, 4096 // padded)
    return Launch(rows, min(16, max(1, padded * rows // 1024)))


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    launch: Launch | None = None,
    unit: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(normed, x + residual or x, means or None, 1/std): bias None is RMSNorm. With `unit`, float32 (R,), the norm is e4m3
    in units of that, the same in every row."""
    width = x.shape[-1]
    count = x.numel() // width
    normed = torch.empty_like(x, dtype=None if unit is None else FP8)
    total = x if residual is None else torch.empty_like(x)
    means = None if bias is None else torch.empty(count, dtype=torch.float32, device=x.device)
    scales = torch.empty(count, dtype=torch.float32, device=x.device)
    if count:
        launch = launch or default_launch(width, backward=False)
        _forward[(triton.cdiv(count, launch.rows),)](
            x, residual, weight, bias, normed, total, means, scales, unit, count, eps,
            width, _padded(width), launch.rows, bias is not None, residual is not None,
            unit is not None, interpreted(), width**0.5, LARGEST, LEAST_SCALE, num_warps=launch.warps,
        )  # fmt: skip
    return normed, total, means, scales


def backward(
    total: torch.Tensor,
    weight: torch.Tensor,
    means: torch.Tensor | None,
    scales: torch.Tensor,
    grad_normed: torch.Tensor,
    grad_total: torch.Tensor | None,
    launch: Launch | None = None,
    *,
    sum_x: bool = False,
    sum_total: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Gradients of x (and of the residual: the same), weight and, unless `means` is None, bias; then, where asked for, the sums over the
    rows of the gradient of x and of `grad_total`."""
    width = total.shape[-1]
    count = total.numel() // width
    launch = launch or default_launch(width, backward=True)
    tiles = triton.cdiv(count, launch.rows)
    programs = max(1, min(tiles, streaming_multiprocessors(total.device) * launch.programs_an_sm))
    rows_a_program = triton.cdiv(tiles, programs) * launch.rows
    grad_x = torch.empty_like(total)
    # One row of parts a program: the weight's, the bias's, then the sums over rows.
    sums = 1 + (means is not None) + sum_x + sum_total
    parts = torch.empty(programs, sums * width, dtype=torch.float32, device=total.device)
    _backward[(programs,)](
        total, weight, means, scales, grad_normed, grad_total, grad_x, parts, count, rows_a_program,
        width, _padded(width), launch.rows, means is not None, grad_total is not None, sum_x, sum_total, launch.stages,
        num_warps=launch.warps,
    )  # fmt: skip
    return grad_x, *column_sum(parts, weight.dtype).view(sums, width).unbind()


class AddNorm(torch.autograd.Function):
    """(normed, x + residual) of x, residual or None (then x itself), weight, bias or None (RMSNorm); gradients of two more biases."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        x_bias: torch.Tensor | None,
        total_bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, total, means, scales = forward(x, residual, weight, bias, eps)
        ctx.save_for_backward(total, weight, means, scales)
        ctx.has_residual = residual is not None
        ctx.set_materialize_grads(False)
        return normed, total.view_as(total) if residual is None else total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_normed: torch.Tensor | None, grad_total: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        total, weight, means, scales = ctx.saved_tensors
        sum_x, sum_total = ctx.needs_input_grad[5], ctx.needs_input_grad[6] and grad_total is not None
        if grad_normed is None:  # only the sum was used
            row_sum = grad_total.flatten(0, -2).sum(dim=0) if grad_total is not None and any(ctx.needs_input_grad[5:]) else None
            sums = [row_sum if needed else None for needed in ctx.needs_input_grad[5:]]
            return grad_total, grad_total if ctx.has_residual else None, None, None, None, *sums
        grad_total = None if grad_total is None else grad_total.contiguous()
        grads = backward(total, weight, means, scales, grad_normed.contiguous(), grad_total, sum_x=sum_x, sum_total=sum_total)
        grad_x, grad_weight, *rest = grads
        grad_bias = None if means is None else rest.pop(0)
        grad_x_bias = rest.pop(0) if sum_x else None
        return grad_x, grad_x if ctx.has_residual else None, grad_weight, grad_bias, None, grad_x_bias, rest.pop(0) if sum_total else None
