"""Frame attention in Triton, forward and backward.

A program takes one head of as many whole frames as fit into a few rows (16 rows hold five frames of three codes), multiplies them as one
small tile on the tensor cores and masks the scores to each frame's causal triangle. The products that the mask throws away cost nothing:
the kernels wait for memory, and every byte moves once. No score is stored; the backward pass computes them again from q and k.
X frames, L codes, N heads, H head width; all offsets are 64-bit.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Launch:
    """Rows of the tile (at least the codes of a frame) and warps of a program."""

    rows: int
    warps: int = 2


def default_launch(codes: int, *, backward: bool) -> Launch:
    """The launch measured best on an H100 (kernels/README.md)."""
    if codes > 16 or (backward and codes > 4):
        return Launch(32)
    return Launch(16)


@triton.jit
def _tile_rows(frames, L: tl.constexpr, ROWS: tl.constexpr, heads):
    """Head, first row and rows of this program's tile: the whole frames that fit into ROWS rows."""
    FRAMES: tl.constexpr = ROWS // L
    program = tl.program_id(0).to(tl.int64)
    tile = program // heads
    first = tile * FRAMES * L
    rows = tl.minimum(frames * L - first, FRAMES * L)
    return program - tile * heads, first, rows


@triton.jit
def _frame_weights(query, key, log2_scale, L: tl.constexpr, ROWS: tl.constexpr):
    """Softmax of the scores inside each frame's causal triangle, (ROWS, ROWS) float32."""
    row = tl.arange(0, ROWS)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * log2_scale
    seen = (row[:, None] // L == row[None, :] // L) & (row[:, None] >= row[None, :])
    scores = tl.where(seen, scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _forward(qkv, out, frames, heads, log2_scale, L: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    head, first, rows = _tile_rows(frames, L, ROWS, heads)
    row = tl.arange(0, ROWS)
    cols = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (cols < H)[None, :]
    source = qkv + (first + row)[:, None] * heads * 3 * H + head * 3 * H + cols[None, :]
    query = tl.load(source, mask=inside, other=0.0)
    key = tl.load(source + H, mask=inside, other=0.0)
    value = tl.load(source + 2 * H, mask=inside, other=0.0)
    weights = _frame_weights(query, key, log2_scale, L, ROWS)
    mixed = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    target = out + (first + row)[:, None] * heads * H + head * H + cols[None, :]
    tl.store(target, mixed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    qkv, grad_out, grad_qkv, frames, heads, scale, log2_scale, L: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    head, first, rows = _tile_rows(frames, L, ROWS, heads)
    row = tl.arange(0, ROWS)
    cols = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (cols < H)[None, :]
    packed = (first + row)[:, None] * heads * 3 * H + head * 3 * H + cols[None, :]
    query = tl.load(qkv + packed, mask=inside, other=0.0)
    key = tl.load(qkv + packed + H, mask=inside, other=0.0)
    value = tl.load(qkv + packed + 2 * H, mask=inside, other=0.0)
    grad = tl.load(grad_out + (first + row)[:, None] * heads * H + head * H + cols[None, :], mask=inside, other=0.0)
    weights = _frame_weights(query, key, log2_scale, L, ROWS)
    grad_weights = tl.dot(grad, tl.trans(value), input_precision="ieee")
    mean = tl.sum(weights * grad_weights, axis=1)
    grad_scores = (weights * (grad_weights - mean[:, None]) * scale).to(key.dtype)
    grad_value = tl.dot(tl.trans(weights.to(grad.dtype)), grad, input_precision="ieee")
    tl.store(grad_qkv + packed + 2 * H, grad_value.to(grad_qkv.dtype.element_ty), mask=inside)
    grad_key = tl.dot(tl.trans(grad_scores), query, input_precision="ieee")
    tl.store(grad_qkv + packed + H, grad_key.to(grad_qkv.dtype.element_ty), mask=inside)
    grad_query = tl.dot(grad_scores, key, input_precision="ieee")
    tl.store(grad_qkv + packed, grad_query.to(grad_qkv.dtype.element_ty), mask=inside)


def _sizes(qkv_XLN3H: torch.Tensor, launch: Launch) -> tuple[tuple[int], int]:
    """Grid and padded head width."""
    frames, codes, heads, _, head_dim = qkv_XLN3H.shape
    return (triton.cdiv(frames, launch.rows // codes) * heads,), max(16, triton.next_power_of_2(head_dim))


def forward(qkv_XLN3H: torch.Tensor, launch: Launch | None = None) -> torch.Tensor:
    """(X, L, N*H) of the contiguous packed projection; `launch` overrides the measured choice (benchmarks)."""
    frames, codes, heads, _, head_dim = qkv_XLN3H.shape
    launch = launch or default_launch(codes, backward=False)
    out = torch.empty(frames, codes, heads * head_dim, dtype=qkv_XLN3H.dtype, device=qkv_XLN3H.device)
    if out.numel():
        grid, width = _sizes(qkv_XLN3H, launch)
        log2_scale = head_dim**-0.5 * LOG2_E
        _forward[grid](qkv_XLN3H, out, frames, heads, log2_scale, codes, head_dim, launch.rows, width, num_warps=launch.warps)
    return out


def backward(qkv_XLN3H: torch.Tensor, grad_out: torch.Tensor, launch: Launch | None = None) -> torch.Tensor:
    """Gradient of the packed projection, in its layout."""
    frames, codes, heads, _, head_dim = qkv_XLN3H.shape
    launch = launch or default_launch(codes, backward=True)
    grad_qkv = torch.empty_like(qkv_XLN3H)
    if grad_qkv.numel():
        grid, width = _sizes(qkv_XLN3H, launch)
        scale = head_dim**-0.5
        _backward[grid](
            qkv_XLN3H, grad_out, grad_qkv, frames, heads, scale, scale * LOG2_E,
            codes, head_dim, launch.rows, width, num_warps=launch.warps,
        )  # fmt: skip
    return grad_qkv


class FrameAttention(torch.autograd.Function):
    """Saves the packed projection alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, qkv_XLN3H: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(qkv_XLN3H)
        return forward(qkv_XLN3H)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_out: torch.Tensor) -> torch.Tensor:
        (qkv_XLN3H,) = ctx.saved_tensors
        return backward(qkv_XLN3H, grad_out.contiguous())
