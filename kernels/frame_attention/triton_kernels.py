"""Frame attention in Triton, forward and backward, two forms of the same mathematics.

`unrolled` holds all codes of a (frame, head) pair in registers and does every product elementwise: no tensor core, no shared memory, for
the few codes of a usual frame. `tiled` packs as many whole frames as fit into R rows and masks the R x R scores to one frame's causal
triangle, on tensor cores, for longer frames. Neither stores scores; the backward pass recomputes them from q and k.
X frames, L codes, N heads, H head width; all offsets are 64-bit.
"""

# ruff: noqa: ANN001, ANN202, RUF005 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code="no-untyped-def, assignment"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Launch:
    """Which form runs, over how many pairs (unrolled) or rows (tiled) a program, on how many warps."""

    form: str
    size: int
    warps: int


def default_launch(codes: int, head_dim: int, *, backward: bool) -> Launch:
    """The launch measured best on an H100 (kernels/README.md) for frames of this many codes."""
    if codes <= 8:
        return Launch("unrolled", 4, 4) if codes > 4 or backward else Launch("unrolled", 8, 4)
    rows = max(16, triton.next_power_of_2(codes))
    return Launch("tiled", rows, 1 if rows * head_dim <= 2048 else 4)


@triton.jit
def _unrolled_forward(qkv, out, pairs, heads, scale, L: tl.constexpr, H: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    cols = tl.arange(0, WIDTH)
    frame = pair // heads
    head = pair - frame * heads
    inside = (pair < pairs)[:, None] & (cols < H)[None, :]
    source = qkv + ((frame * L * heads + head) * 3 * H)[:, None] + cols[None, :]
    target = out + ((frame * L * heads + head) * H)[:, None] + cols[None, :]
    keys = ()
    values = ()
    for l in tl.static_range(L):
        keys = keys + (tl.load(source + l * heads * 3 * H + H, mask=inside, other=0.0),)
        values = values + (tl.load(source + l * heads * 3 * H + 2 * H, mask=inside, other=0.0),)
    for i in tl.static_range(L):
        query = tl.load(source + i * heads * 3 * H, mask=inside, other=0.0).to(tl.float32) * scale
        scores = ()
        highest = tl.full((PAIRS,), float("-inf"), tl.float32)
        for j in tl.static_range(i + 1):
            score = tl.sum(query * keys[j].to(tl.float32), axis=1)
            highest = tl.maximum(highest, score)
            scores = scores + (score,)
        total = tl.zeros((PAIRS,), tl.float32)
        mixed = tl.zeros((PAIRS, WIDTH), tl.float32)
        for j in tl.static_range(i + 1):
            weight = tl.exp2(scores[j] - highest)
            total += weight
            mixed += weight[:, None] * values[j].to(tl.float32)
        tl.store(target + i * heads * H, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _unrolled_backward(
    qkv, grad_out, grad_qkv, pairs, heads, scale, log2_scale, L: tl.constexpr, H: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr
):
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    cols = tl.arange(0, WIDTH)
    frame = pair // heads
    head = pair - frame * heads
    inside = (pair < pairs)[:, None] & (cols < H)[None, :]
    packed = ((frame * L * heads + head) * 3 * H)[:, None] + cols[None, :]
    source = qkv + packed
    grad_source = grad_qkv + packed
    grads = grad_out + ((frame * L * heads + head) * H)[:, None] + cols[None, :]
    keys = ()
    values = ()
    grad_keys = ()
    grad_values = ()
    for l in tl.static_range(L):
        keys = keys + (tl.load(source + l * heads * 3 * H + H, mask=inside, other=0.0),)
        values = values + (tl.load(source + l * heads * 3 * H + 2 * H, mask=inside, other=0.0),)
        grad_keys = grad_keys + (tl.zeros((PAIRS, WIDTH), tl.float32),)
        grad_values = grad_values + (tl.zeros((PAIRS, WIDTH), tl.float32),)
    # From the last query down: once query i is done, no later one needs key i, so its gradient is final and its registers free.
    for i in tl.static_range(L - 1, -1, -1):
        query = tl.load(source + i * heads * 3 * H, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grads + i * heads * H, mask=inside, other=0.0).to(tl.float32)
        scores = ()
        grad_weights = ()
        highest = tl.full((PAIRS,), float("-inf"), tl.float32)
        for j in tl.static_range(i + 1):
            score = tl.sum(query * keys[j].to(tl.float32), axis=1) * log2_scale
            highest = tl.maximum(highest, score)
            scores = scores + (score,)
            grad_weights = grad_weights + (tl.sum(grad * values[j].to(tl.float32), axis=1),)
        total = tl.zeros((PAIRS,), tl.float32)
        mean = tl.zeros((PAIRS,), tl.float32)
        for j in tl.static_range(i + 1):
            weight = tl.exp2(scores[j] - highest)
            total += weight
            mean += weight * grad_weights[j]
        mean = mean / total
        grad_query = tl.zeros((PAIRS, WIDTH), tl.float32)
        new_keys = ()
        new_values = ()
        for j in tl.static_range(i + 1):
            weight = tl.exp2(scores[j] - highest) / total
            grad_score = weight * (grad_weights[j] - mean) * scale
            grad_query += grad_score[:, None] * keys[j].to(tl.float32)
            new_keys = new_keys + (grad_keys[j] + grad_score[:, None] * query,)
            new_values = new_values + (grad_values[j] + weight[:, None] * grad,)
        grad_keys = new_keys
        grad_values = new_values
        place = grad_source + i * heads * 3 * H
        tl.store(place, grad_query.to(grad_qkv.dtype.element_ty), mask=inside)
        tl.store(place + H, grad_keys[i].to(grad_qkv.dtype.element_ty), mask=inside)
        tl.store(place + 2 * H, grad_values[i].to(grad_qkv.dtype.element_ty), mask=inside)


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
def _tiled_forward(qkv, out, frames, heads, log2_scale, L: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
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
def _tiled_backward(
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


def _programs(frames: int, codes: int, heads: int, launch: Launch) -> tuple[int]:
    if launch.form == "unrolled":
        return (triton.cdiv(frames * heads, launch.size),)
    return (triton.cdiv(frames, launch.size // codes) * heads,)


def forward(qkv_XLN3H: torch.Tensor, launch: Launch | None = None) -> torch.Tensor:
    """(X, L, N*H) of the contiguous packed projection; `launch` overrides the measured choice (benchmarks)."""
    frames, codes, heads, _, head_dim = qkv_XLN3H.shape
    out = torch.empty(frames, codes, heads * head_dim, dtype=qkv_XLN3H.dtype, device=qkv_XLN3H.device)
    if out.numel() == 0:
        return out
    launch = launch or default_launch(codes, head_dim, backward=False)
    grid, width = _programs(frames, codes, heads, launch), max(16, triton.next_power_of_2(head_dim))
    log2_scale = head_dim**-0.5 * LOG2_E
    if launch.form == "unrolled":
        _unrolled_forward[grid](
            qkv_XLN3H, out, frames * heads, heads, log2_scale, codes, head_dim, launch.size, width, num_warps=launch.warps
        )
    else:
        _tiled_forward[grid](qkv_XLN3H, out, frames, heads, log2_scale, codes, head_dim, launch.size, width, num_warps=launch.warps)
    return out


def backward(qkv_XLN3H: torch.Tensor, grad_out: torch.Tensor, launch: Launch | None = None) -> torch.Tensor:
    """Gradient of the packed projection, in its layout."""
    frames, codes, heads, _, head_dim = qkv_XLN3H.shape
    grad_qkv = torch.empty_like(qkv_XLN3H)
    if grad_qkv.numel() == 0:
        return grad_qkv
    launch = launch or default_launch(codes, head_dim, backward=True)
    grid, width = _programs(frames, codes, heads, launch), max(16, triton.next_power_of_2(head_dim))
    kernel, count = (_unrolled_backward, frames * heads) if launch.form == "unrolled" else (_tiled_backward, frames)
    scale = head_dim**-0.5
    tensors = (qkv_XLN3H, grad_out.contiguous(), grad_qkv)
    kernel[grid](*tensors, count, heads, scale, scale * LOG2_E, codes, head_dim, launch.size, width, num_warps=launch.warps)
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
        return backward(qkv_XLN3H, grad_out)
