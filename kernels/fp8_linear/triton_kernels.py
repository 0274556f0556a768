"""Tensors in 8 bits with one scale, in both orientations: what a product needs of its operands, and what its gradients need.

The tensor cores sum along the last axis of both operands. So a tensor that is summed over its columns in one product and over its rows
in another is written twice in one pass: rows (R, K), and columns (K, R) with R filled up with zeros to a multiple of 16.
The largest value is found first, in parts: maxima do not depend on their order, so the scale is deterministic, and nothing waits for
the host.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from uniaudio.kernels.activation.triton_kernels import gelu_slope, gelu_value
from uniaudio.kernels.checks import interpreted
from uniaudio.kernels.column_sum import column_sum
from uniaudio.kernels.fp8 import FP8, LARGEST, LEAST_SCALE
from uniaudio.kernels.fp8_linear import reference
from uniaudio.kernels.fp8_linear.reference import GELU_DEEPEST, MARGIN, SLOPE_STEEPEST, Eight, filled
from uniaudio.kernels.fp8_rounding import to_fp8
from uniaudio.kernels.norm import triton_kernels as norms

PLAIN, GELU, GELU_GRADIENT, TURN = 0, 1, 2, 3


@dataclass(frozen=True)
class Tile:
    """What one program casts or turns, and its warps."""

    rows: int
    columns: int
    warps: int


# Measured best on an H200 (kernels/README.md).
TILES = {PLAIN: Tile(64, 64, 4), GELU: Tile(64, 64, 4), GELU_GRADIENT: Tile(64, 64, 4), TURN: Tile(128, 128, 8)}
CHUNK, MOST_PARTS = 4096, 1024  # values at once and programs of the search for the largest


@triton.jit
def _largest(x, parts, count, chunks, CHUNK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * chunks * CHUNK
    most = tl.zeros((CHUNK,), tl.float32)
    for chunk in range(chunks):
        place = first + chunk * CHUNK + tl.arange(0, CHUNK)
        most = tl.maximum(most, tl.abs(tl.load(x + place, mask=place < count, other=0.0).to(tl.float32)))
    tl.store(parts + tl.program_id(0), tl.max(most, axis=0))


@triton.jit
def _longest(x, scale, squares, parts, R, K, rows_a_program, SCALED: tl.constexpr, LARGEST: tl.constexpr, WIDTH: tl.constexpr):
    """A part's largest sum of squares of a row, and its largest |x|."""
    program = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    square, most = 0.0, tl.zeros((WIDTH,), tl.float32)
    for row in range(program * rows_a_program, tl.minimum((program + 1) * rows_a_program, R)):
        values = tl.load(x + row * K + cols, mask=cols < K, other=0.0).to(tl.float32)
        square = tl.maximum(square, tl.sum(values * values, axis=0))
        if LARGEST:
            most = tl.maximum(most, tl.abs(values))
    if SCALED:
        one = tl.load(scale)
        square *= one * one
    tl.store(squares + program, square)
    if LARGEST:
        tl.store(parts + program, tl.max(most, axis=0))


@triton.jit
def _gelu_bound(
    norm_weight, norm_bias, bias, squares, bound, D, K, ROOT: tl.constexpr, MARGIN: tl.constexpr, DEEPEST: tl.constexpr,
    PARTS: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    cols, inner = tl.arange(0, WIDTH), tl.arange(0, INNER)
    factor = tl.load(norm_weight + cols, mask=cols < D, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + cols, mask=cols < D, other=0.0).to(tl.float32)
    length = ROOT * tl.max(tl.abs(factor), axis=0) + tl.sqrt(tl.sum(shift * shift, axis=0))
    reach = tl.sqrt(tl.max(tl.load(squares + tl.arange(0, PARTS)), axis=0))
    most = tl.max(tl.abs(tl.load(bias + inner, mask=inner < K, other=0.0).to(tl.float32)), axis=0)
    tl.store(bound, tl.maximum(length * reach * MARGIN + most, DEEPEST))


@triton.jit
def _cast(
    x, bias, grad, parts, more_parts, rows, columns, scale, sums, R, R_FILLED, K,
    FACTOR: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr, BY_HAND: tl.constexpr,
    SUMMED: tl.constexpr, TURNED: tl.constexpr, PARTS: tl.constexpr, MORE_PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(K, COLUMNS)
    part = (tl.program_id(0) // blocks).to(tl.int64)
    row = part * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < R)[:, None] & (col < K)[None, :]
    place = row[:, None] * K + col[None, :]
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if KIND > 0:
        values += tl.load(bias + col, mask=col < K, other=0.0).to(tl.float32)[None, :]
        WIDE: tl.constexpr = x.dtype.element_ty == tl.float32
        if KIND == 1:
            values = tl.where(inside, gelu_value(values, EXACT, WIDE), 0.0)
        else:
            values = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32) * gelu_slope(values, EXACT, WIDE)
    if SUMMED:
        tl.store(sums + part * K + col, tl.sum(values, axis=0), mask=col < K)
    most = tl.max(tl.load(parts + tl.arange(0, PARTS)), axis=0)
    if MORE_PARTS > 0:  # both of squares of lengths
        most = tl.sqrt(most) * tl.sqrt(tl.max(tl.load(more_parts + tl.arange(0, MORE_PARTS)), axis=0))
    unit = tl.maximum(most * FACTOR / LARGEST, LEAST)
    eight = to_fp8(values * (1.0 / unit), BY_HAND)
    tl.store(rows + place, eight, mask=inside)
    if TURNED:
        place = col.to(tl.int64)[:, None] * R_FILLED + row[None, :]
        tl.store(columns + place, tl.trans(eight), mask=(col < K)[:, None] & (row < R_FILLED)[None, :])
    if tl.program_id(0) % blocks == 0:
        tl.store(scale + row, tl.zeros((ROWS,), tl.float32) + unit, mask=row < R)
    if tl.program_id(0) < blocks:
        tl.store(scale + col, tl.zeros((COLUMNS,), tl.float32) + unit, mask=col < K)


@triton.jit
def _turn(rows, columns, R, R_FILLED, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    blocks = tl.cdiv(K, COLUMNS)
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    values = tl.load(rows + row[:, None] * K + col[None, :], mask=(row < R)[:, None] & (col < K)[None, :], other=0)
    place = col.to(tl.int64)[:, None] * R_FILLED + row[None, :]
    tl.store(columns + place, tl.trans(values), mask=(col < K)[:, None] & (row < R_FILLED)[None, :])


def largest(x: torch.Tensor) -> torch.Tensor:
    """Parts (a power of two) whose maximum is that of |x|."""
    chunks = triton.cdiv(x.numel(), CHUNK)
    programs = min(MOST_PARTS, triton.next_power_of_2(max(1, chunks)))
    parts = torch.empty(programs, dtype=torch.float32, device=x.device)
    _largest[(programs,)](x, parts, x.numel(), triton.cdiv(chunks, programs), CHUNK, num_warps=8)
    return parts


def _long(x: torch.Tensor, scale: torch.Tensor | None, *, and_largest: bool) -> torch.Tensor:
    """Parts (1 or 2, a power of two) of the largest square of a row's length, and of the largest |x|."""
    R, K = x.shape
    programs = min(MOST_PARTS, triton.next_power_of_2(R))
    parts = torch.empty(1 + and_largest, programs, dtype=torch.float32, device=x.device)
    each, width = triton.cdiv(R, programs), triton.next_power_of_2(K)
    _longest[(programs,)](
        x, scale, parts[0], parts[-1], R, K, each, scale is not None, and_largest, width, num_warps=max(1, min(8, width // 512))
    )
    return parts


def reach(x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Parts whose maximum is the square of the length of the longest row of x (R, K), times `scale`."""
    return _long(x, scale, and_largest=False)[0]


def _both(
    x: torch.Tensor,
    parts: torch.Tensor,
    kind: int = PLAIN,
    *,
    bias: torch.Tensor | None = None,
    grad: torch.Tensor | None = None,
    more_parts: torch.Tensor | None = None,
    exact: bool = True,
    factor: float = 1.0,
    summed: bool = False,
) -> tuple[Eight, torch.Tensor]:
    """Both orientations of x, or of what `kind` makes of it, and parts of sums over rows.

    Its largest value is that of `parts`; with `more_parts`, both of squares of lengths, the product of those.
    """
    (R, K), tile, turn_here = x.shape, TILES[kind], kind != GELU_GRADIENT and x.dtype != torch.float32
    eight = Eight(
        torch.empty(R, K, dtype=FP8, device=x.device),
        torch.empty(K if turn_here else 0, filled(R), dtype=FP8, device=x.device),
        torch.empty(max(R, K), dtype=torch.float32, device=x.device),
    )
    tiles = triton.cdiv(filled(R), tile.rows)
    sums = torch.empty(tiles if summed else 0, K, dtype=torch.float32, device=x.device)
    _cast[(tiles * triton.cdiv(K, tile.columns),)](
        x, bias, grad, parts, more_parts, *eight, sums, R, filled(R), K, factor, LARGEST, LEAST_SCALE, kind, exact, interpreted(),
        summed, turn_here, parts.numel(), 0 if more_parts is None else more_parts.numel(), tile.rows, tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    # Behind gelu's slope, and of float32, the turned tile was wrong on an H200 (Triton 3.6), its rows right: a pass of its own turns.
    return eight if turn_here else eight._replace(columns=turned(eight.rows)), sums


def cast(x: torch.Tensor) -> Eight:
    """x (R, K) contiguous; its largest value becomes 448."""
    return _both(x, largest(x))[0]


def cast_summed(x: torch.Tensor) -> tuple[Eight, torch.Tensor]:
    """`cast`, and the sum over rows (K,) in x's dtype."""
    eight, sums = _both(x, largest(x), summed=True)
    return eight, column_sum(sums, x.dtype)


def reach_cast(x: torch.Tensor) -> tuple[Eight, torch.Tensor]:
    """`cast`, and `reach` of x."""
    squares, parts = _long(x, None, and_largest=True)
    return _both(x, parts)[0], squares


def gelu_bound(norm_weight: torch.Tensor, norm_bias: torch.Tensor, bias: torch.Tensor, weight_reach: torch.Tensor) -> torch.Tensor:
    """A bound (1,) of |gelu(W n + bias)| for any n that this LayerNorm can give."""
    bound = torch.empty(1, dtype=torch.float32, device=bias.device)
    widths = norm_weight.numel(), bias.numel()
    _gelu_bound[(1,)](
        norm_weight, norm_bias, bias, weight_reach, bound, *widths, widths[0] ** 0.5, MARGIN, GELU_DEEPEST,
        weight_reach.numel(), *map(triton.next_power_of_2, widths), num_warps=8,
    )  # fmt: skip
    return bound


def gelu_cast(x: torch.Tensor, bias: torch.Tensor, bound: torch.Tensor, exact: bool) -> Eight:
    """gelu(x + bias), x (R, K), in units with which its `bound` is 448."""
    return _both(x, bound, GELU, bias=bias, exact=exact)[0]


def gelu_gradient_cast(
    x: torch.Tensor, bias: torch.Tensor, grad: torch.Tensor, grad_reach: torch.Tensor, weight_reach: torch.Tensor, exact: bool
) -> tuple[Eight, torch.Tensor]:
    """The gradient of x (R, K) through gelu(x + bias), and that of bias; `grad` is a product of rows of these reaches."""
    factor, given = SLOPE_STEEPEST * MARGIN, {"bias": bias, "grad": grad, "more_parts": weight_reach}
    eight, sums = _both(x, grad_reach, GELU_GRADIENT, **given, exact=exact, factor=factor, summed=True)
    return eight, column_sum(sums, bias.dtype)


def turned(rows: torch.Tensor) -> torch.Tensor:
    """(R, K) of 8 bits -> (K, R filled up with zeros)."""
    (R, K), tile = rows.shape, TILES[TURN]
    columns = torch.empty(K, filled(R), dtype=FP8, device=rows.device)
    grid = (triton.cdiv(filled(R), tile.rows) * triton.cdiv(K, tile.columns),)
    _turn[grid](rows.view(torch.int8), columns.view(torch.int8), R, filled(R), K, tile.rows, tile.columns, num_warps=tile.warps)
    return columns


def norm_cast(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """(rows of LayerNorm(x + residual), their scale, what its gradient needs: x + residual first)."""
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    normed, total, means, inverses = norms.forward(x, residual, weight, bias, eps, unit=scale)
    return normed, scale, (total, means, inverses)


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
    total, means, inverses = kept
    return norms.backward(total, weight, means, inverses, grad_normed, grad_total, sum_x=sums, sum_total=sums)


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
    """(R, N) in `dtype` of a (R, K) and b (N, K)."""
    if interpreted():
        return reference.product(a, a_scale, b, b_scale, dtype, bias)
    # With a scale a row torch takes other kernels, for bf16 alone: faster unless the sum is long (an H200, kernels/README.md).
    each = dtype == torch.bfloat16 and not over_tokens
    scales = (a_scale[: a.shape[0], None], b_scale[None, : b.shape[0]]) if each else (a_scale[0], b_scale[0])
    inside = bias if dtype in (torch.bfloat16, torch.float16) else None  # a bias in float32 is not for the tensor cores' epilogue
    result = torch._scaled_mm(a, b.t(), bias=inside, scale_a=scales[0], scale_b=scales[1], out_dtype=dtype, use_fast_accum=True)
    return result if inside is bias else result + bias
