"""Attention inside packed documents in Triton, forward and backward: a tile of queries walks only over keys of its own documents.

Three kernels: forward (output and log-sum-exp); gradient of the queries, which also leaves delta = sum(out * grad_out) for the third;
gradient of keys and values. Walks that lie inside one document run without a mask up to the diagonal. Everything reads and writes the
packed projection (B, T, N, 3, H) in place; row offsets are 64-bit. B rows, T frames, N heads, H head width.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

from uniaudio.kernels.varlen_attention.boundaries import Spans, document_spans

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Launch:
    """Rows of the tile that stays, rows of the tile that walks, warps, pipeline stages."""

    rows: int
    step: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Plan:
    """The three launches of one attention."""

    forward: Launch
    queries: Launch
    keys: Launch


def default_plan(head_dim: int, dtype: torch.dtype, *, packed: bool) -> Plan:
    """The launches measured best on an H100 (kernels/README.md); rows packed with several documents waste less in short steps."""
    if dtype == torch.float32:
        small = Launch(32, 32, 4, 1)
        return Plan(small, small, small)
    if head_dim > 128:
        wide = Launch(64, 32, 4, 1)
        return Plan(wide, wide, wide)
    step = 32 if packed else 64
    return Plan(Launch(64, step, 4, 3), Launch(64, step, 4, 2), Launch(64, 64, 4, 2))


@triton.jit
def _tile(tiles, batch, heads, LAST_FIRST: tl.constexpr):
    """Tile, row of the batch and head of this program: all heads of all rows at one tile are neighbours; heavy tiles come first."""
    program = tl.program_id(0)
    pairs = batch * heads
    tile = program // pairs
    if LAST_FIRST:
        tile = tiles - 1 - tile
    pair = program % pairs
    return tile, (pair // heads).to(tl.int64), pair % heads


@triton.jit
def _load(rows, row_inside, ROWS_MASKED: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, H: tl.constexpr):
    """Columns FIRST.. of the rows that the (R, 1) pointers begin; 0 beyond the head width and outside `row_inside`."""
    cols = FIRST + tl.arange(0, COUNT)[None, :]
    if ROWS_MASKED:
        tile = tl.load(rows + cols, mask=row_inside[:, None] & (cols < H), other=0.0)
    elif FIRST + COUNT > H:
        tile = tl.load(rows + cols, mask=cols < H, other=0.0)
    else:
        tile = tl.load(rows + cols)
    return tile


@triton.jit
def _store(rows, tile, row_inside, FIRST: tl.constexpr, COUNT: tl.constexpr, H: tl.constexpr):
    """Writes what `_load` reads."""
    cols = FIRST + tl.arange(0, COUNT)[None, :]
    tl.store(rows + cols, tile.to(rows.dtype.element_ty), mask=row_inside[:, None] & (cols < H))


@triton.jit
def _walk_keys(
    acc, acc_rest, highest, total, query, query_rest, keys, begin, end, key_first, key_end, log2_scale, stride: tl.constexpr,
    MASKED: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr, H: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys begin..end; `keys` points at row 0 of this row's keys, values lie H further."""
    offset = tl.arange(0, STEP)
    for position in tl.range(begin, end, STEP, num_stages=STAGES):
        frame = position + offset
        place = keys + frame.to(tl.int64)[:, None] * stride
        inside = frame < end
        scores = tl.dot(query, tl.trans(_load(place, inside, MASKED, 0, WIDTH, H)), input_precision="ieee")
        if SPLIT:
            scores = tl.dot(query_rest, tl.trans(_load(place, inside, MASKED, WIDTH, REST, H)), scores, input_precision="ieee")
        scores *= log2_scale
        if MASKED:
            seen = (frame[None, :] >= key_first[:, None]) & (frame[None, :] < key_end[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_highest[:, None])
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, axis=1)
        weights = weights.to(query.dtype)
        acc = tl.dot(weights, _load(place + H, inside, MASKED, 0, WIDTH, H), acc * decay[:, None], input_precision="ieee")
        if SPLIT:
            value_rest = _load(place + H, inside, MASKED, WIDTH, REST, H)
            acc_rest = tl.dot(weights, value_rest, acc_rest * decay[:, None], input_precision="ieee")
        highest = new_highest
    return acc, acc_rest, highest, total


@triton.jit
def _key_range(key_firsts, key_ends, line, first, last, STEP: tl.constexpr):
    """Begin, end of the unmasked walk, and end of the keys that queries first..last see."""
    begin = tl.load(key_firsts + line + first)
    end = tl.load(key_ends + line + last)
    one_document = tl.load(key_firsts + line + last) == begin
    seen_by_all = tl.where(one_document, tl.load(key_ends + line + first) - begin, 0)
    return begin, begin + seen_by_all // STEP * STEP, end


@triton.jit
def _forward(
    qkv, out, sums, key_firsts, key_ends, batch, frames, tiles, log2_scale,
    heads: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile, row, head = _tile(tiles, batch, heads, True)
    frame = tile * ROWS + tl.arange(0, ROWS)
    inside = frame < frames
    last = tl.minimum(tile * ROWS + ROWS, frames) - 1
    stride: tl.constexpr = heads * 3 * H
    base = qkv + row * frames * stride + head * 3 * H
    queries = base + frame.to(tl.int64)[:, None] * stride
    query = _load(queries, inside, True, 0, WIDTH, H)
    query_rest = query
    if SPLIT:
        query_rest = _load(queries, inside, True, WIDTH, REST, H)
    # Rows behind the end repeat the last one's range, so that they never hold an empty softmax.
    key_first = tl.load(key_firsts + row * frames + tl.minimum(frame, last))
    key_end = tl.load(key_ends + row * frames + tl.minimum(frame, last))
    begin, middle, end = _key_range(key_firsts, key_ends, row * frames, tile * ROWS, last, STEP)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    acc_rest = tl.zeros((ROWS, REST), tl.float32)
    highest = tl.full((ROWS,), -1.0e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc, acc_rest, highest, total = _walk_keys(
        acc, acc_rest, highest, total, query, query_rest, base + H, begin, middle, key_first, key_end, log2_scale, stride,
        False, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    acc, acc_rest, highest, total = _walk_keys(
        acc, acc_rest, highest, total, query, query_rest, base + H, middle, end, key_first, key_end, log2_scale, stride,
        True, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    place = out + ((row * frames + frame)[:, None] * heads + head) * H
    _store(place, acc / total[:, None], inside, 0, WIDTH, H)
    if SPLIT:
        _store(place, acc_rest / total[:, None], inside, WIDTH, REST, H)
    tl.store(sums + (row * heads + head) * frames + frame, highest + tl.log2(total), mask=inside)


@triton.jit
def _walk_keys_backward(
    acc, acc_rest, query, query_rest, grad, grad_rest, sums, delta, keys, begin, end, key_first, key_end, log2_scale,
    stride: tl.constexpr, MASKED: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr,
    H: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Adds to `acc` the gradient of the queries from keys begin..end, without the scale."""
    offset = tl.arange(0, STEP)
    for position in tl.range(begin, end, STEP, num_stages=STAGES):
        frame = position + offset
        place = keys + frame.to(tl.int64)[:, None] * stride
        inside = frame < end
        key = _load(place, inside, MASKED, 0, WIDTH, H)
        key_rest = key
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        grad_weights = tl.dot(grad, tl.trans(_load(place + H, inside, MASKED, 0, WIDTH, H)), input_precision="ieee")
        if SPLIT:
            key_rest = _load(place, inside, MASKED, WIDTH, REST, H)
            scores = tl.dot(query_rest, tl.trans(key_rest), scores, input_precision="ieee")
            value_rest = _load(place + H, inside, MASKED, WIDTH, REST, H)
            grad_weights = tl.dot(grad_rest, tl.trans(value_rest), grad_weights, input_precision="ieee")
        weights = tl.exp2(scores * log2_scale - sums[:, None])
        if MASKED:
            seen = (frame[None, :] >= key_first[:, None]) & (frame[None, :] < key_end[:, None])
            weights = tl.where(seen, weights, 0.0)
        grad_scores = (weights * (grad_weights - delta[:, None])).to(key.dtype)
        acc = tl.dot(grad_scores, key, acc, input_precision="ieee")
        if SPLIT:
            acc_rest = tl.dot(grad_scores, key_rest, acc_rest, input_precision="ieee")
    return acc, acc_rest


@triton.jit
def _backward_queries(
    qkv, out, grad_out, grad_qkv, sums, deltas, key_firsts, key_ends, batch, frames, tiles, scale, log2_scale,
    heads: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile, row, head = _tile(tiles, batch, heads, True)
    frame = tile * ROWS + tl.arange(0, ROWS)
    inside = frame < frames
    last = tl.minimum(tile * ROWS + ROWS, frames) - 1
    stride: tl.constexpr = heads * 3 * H
    base = row * frames * stride + head * 3 * H
    packed = base + frame.to(tl.int64)[:, None] * stride
    place = ((row * frames + frame)[:, None] * heads + head) * H
    query = _load(qkv + packed, inside, True, 0, WIDTH, H)
    grad = _load(grad_out + place, inside, True, 0, WIDTH, H)
    query_rest, grad_rest = query, grad
    delta = tl.sum(_load(out + place, inside, True, 0, WIDTH, H).to(tl.float32) * grad.to(tl.float32), axis=1)
    if SPLIT:
        query_rest = _load(qkv + packed, inside, True, WIDTH, REST, H)
        grad_rest = _load(grad_out + place, inside, True, WIDTH, REST, H)
        delta += tl.sum(_load(out + place, inside, True, WIDTH, REST, H).to(tl.float32) * grad_rest.to(tl.float32), axis=1)
    line = (row * heads + head) * frames
    tl.store(deltas + line + frame, delta, mask=inside)
    sum_of_row = tl.load(sums + line + tl.minimum(frame, last))
    key_first = tl.load(key_firsts + row * frames + tl.minimum(frame, last))
    key_end = tl.load(key_ends + row * frames + tl.minimum(frame, last))
    begin, middle, end = _key_range(key_firsts, key_ends, row * frames, tile * ROWS, last, STEP)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    acc_rest = tl.zeros((ROWS, REST), tl.float32)
    keys = qkv + base + H
    acc, acc_rest = _walk_keys_backward(
        acc, acc_rest, query, query_rest, grad, grad_rest, sum_of_row, delta, keys, begin, middle, key_first, key_end, log2_scale,
        stride, False, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    acc, acc_rest = _walk_keys_backward(
        acc, acc_rest, query, query_rest, grad, grad_rest, sum_of_row, delta, keys, middle, end, key_first, key_end, log2_scale,
        stride, True, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    _store(grad_qkv + packed, acc * scale, inside, 0, WIDTH, H)
    if SPLIT:
        _store(grad_qkv + packed, acc_rest * scale, inside, WIDTH, REST, H)


@triton.jit
def _walk_queries(
    grad_key, grad_key_rest, grad_value, grad_value_rest, key, key_rest, value, value_rest, queries, grads, sums, deltas,
    begin, end, query_first, query_end, log2_scale, stride: tl.constexpr, out_stride: tl.constexpr,
    MASKED: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr, H: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Adds to the gradients of keys (without the scale) and values what queries begin..end give."""
    offset = tl.arange(0, STEP)
    for position in tl.range(begin, end, STEP, num_stages=STAGES):
        frame = position + offset
        inside = frame >= 0  # the first masked step may reach below the row's first frame
        place = queries + frame.to(tl.int64)[:, None] * stride
        grad_place = grads + frame.to(tl.int64)[:, None] * out_stride
        query = _load(place, inside, MASKED, 0, WIDTH, H)
        grad = _load(grad_place, inside, MASKED, 0, WIDTH, H)
        query_rest, grad_rest = query, grad
        scores = tl.dot(key, tl.trans(query), input_precision="ieee")
        if SPLIT:
            query_rest = _load(place, inside, MASKED, WIDTH, REST, H)
            grad_rest = _load(grad_place, inside, MASKED, WIDTH, REST, H)
            scores = tl.dot(key_rest, tl.trans(query_rest), scores, input_precision="ieee")
        if MASKED:
            sum_of_row = tl.load(sums + frame, mask=inside, other=0.0)
            delta = tl.load(deltas + frame, mask=inside, other=0.0)
        else:
            sum_of_row = tl.load(sums + frame)
            delta = tl.load(deltas + frame)
        weights = tl.exp2(scores * log2_scale - sum_of_row[None, :])
        if MASKED:
            seen = (frame[None, :] >= query_first[:, None]) & (frame[None, :] < query_end[:, None])
            weights = tl.where(seen, weights, 0.0)
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision="ieee")
        grad_weights = tl.dot(value, tl.trans(grad), input_precision="ieee")
        if SPLIT:
            grad_value_rest = tl.dot(weights.to(grad.dtype), grad_rest, grad_value_rest, input_precision="ieee")
            grad_weights = tl.dot(value_rest, tl.trans(grad_rest), grad_weights, input_precision="ieee")
        grad_scores = (weights * (grad_weights - delta[None, :])).to(query.dtype)
        grad_key = tl.dot(grad_scores, query, grad_key, input_precision="ieee")
        if SPLIT:
            grad_key_rest = tl.dot(grad_scores, query_rest, grad_key_rest, input_precision="ieee")
    return grad_key, grad_key_rest, grad_value, grad_value_rest


@triton.jit
def _backward_keys(
    qkv, grad_out, grad_qkv, sums, deltas, query_firsts, query_ends, batch, frames, tiles, scale, log2_scale,
    heads: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile, row, head = _tile(tiles, batch, heads, False)
    frame = tile * ROWS + tl.arange(0, ROWS)
    inside = frame < frames
    last = tl.minimum(tile * ROWS + ROWS, frames) - 1
    stride: tl.constexpr = heads * 3 * H
    base = row * frames * stride + head * 3 * H
    packed = base + frame.to(tl.int64)[:, None] * stride
    key = _load(qkv + packed + H, inside, True, 0, WIDTH, H)
    value = _load(qkv + packed + 2 * H, inside, True, 0, WIDTH, H)
    key_rest, value_rest = key, value
    if SPLIT:
        key_rest = _load(qkv + packed + H, inside, True, WIDTH, REST, H)
        value_rest = _load(qkv + packed + 2 * H, inside, True, WIDTH, REST, H)
    spans = row * frames
    query_first = tl.load(query_firsts + spans + tl.minimum(frame, last))
    query_end = tl.load(query_ends + spans + tl.minimum(frame, last))
    end = tl.load(query_ends + spans + last)
    # Steps are counted back from the end of the document, so that the unmasked walk ends exactly there.
    begin = end - tl.cdiv(end - tl.load(query_firsts + spans + tile * ROWS), STEP) * STEP
    one_document = tl.load(query_ends + spans + tile * ROWS) == end
    middle = end - tl.where(one_document, end - tl.load(query_firsts + spans + last), 0) // STEP * STEP
    grad_key = tl.zeros((ROWS, WIDTH), tl.float32)
    grad_key_rest = tl.zeros((ROWS, REST), tl.float32)
    grad_value = tl.zeros((ROWS, WIDTH), tl.float32)
    grad_value_rest = tl.zeros((ROWS, REST), tl.float32)
    queries = qkv + base
    grads = grad_out + (row * frames * heads + head) * H
    line = (row * heads + head) * frames
    grad_key, grad_key_rest, grad_value, grad_value_rest = _walk_queries(
        grad_key, grad_key_rest, grad_value, grad_value_rest, key, key_rest, value, value_rest, queries, grads, sums + line, deltas + line,
        begin, middle, query_first, query_end, log2_scale, stride, heads * H, True, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    grad_key, grad_key_rest, grad_value, grad_value_rest = _walk_queries(
        grad_key, grad_key_rest, grad_value, grad_value_rest, key, key_rest, value, value_rest, queries, grads, sums + line, deltas + line,
        middle, end, query_first, query_end, log2_scale, stride, heads * H, False, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    _store(grad_qkv + packed + H, grad_key * scale, inside, 0, WIDTH, H)
    _store(grad_qkv + packed + 2 * H, grad_value, inside, 0, WIDTH, H)
    if SPLIT:
        _store(grad_qkv + packed + H, grad_key_rest * scale, inside, WIDTH, REST, H)
        _store(grad_qkv + packed + 2 * H, grad_value_rest, inside, WIDTH, REST, H)


def head_parts(head_dim: int) -> tuple[int, int, bool]:
    """Columns of the main part, of the rest, and whether there is a rest: 96 = 64 + 32 is a quarter less work than 128.

    Triton's tiles are powers of two wide, at least 16. A head that is no sum of two of them is padded to one.
    """
    power = triton.next_power_of_2(head_dim)
    rest = head_dim - power // 2
    if head_dim < power and rest >= 16 and rest == triton.next_power_of_2(rest):
        return power // 2, rest, True
    return max(16, power), 16, False


def _sizes(qkv_BTN3H: torch.Tensor, launch: Launch) -> tuple[tuple[int], int]:
    """Grid and tiles a row."""
    batch, frames, heads, _, _ = qkv_BTN3H.shape
    tiles = triton.cdiv(frames, launch.rows)
    return (tiles * batch * heads,), tiles


def forward(qkv_BTN3H: torch.Tensor, spans: Spans, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, T, N*H) and base-2 log-sum-exp of the scaled scores (B, N, T) float32."""
    batch, frames, heads, _, head_dim = qkv_BTN3H.shape
    launch = plan.forward
    out = torch.empty(batch, frames, heads * head_dim, dtype=qkv_BTN3H.dtype, device=qkv_BTN3H.device)
    sums = torch.empty(batch, heads, frames, dtype=torch.float32, device=qkv_BTN3H.device)
    grid, tiles = _sizes(qkv_BTN3H, launch)
    if out.numel():
        _forward[grid](
            qkv_BTN3H, out, sums, spans.key_first, spans.key_end, batch, frames, tiles, head_dim**-0.5 * LOG2_E,
            heads, head_dim, *head_parts(head_dim), launch.rows, launch.step, launch.stages, num_warps=launch.warps,
        )  # fmt: skip
    return out, sums


def backward_queries(
    qkv_BTN3H: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    grad_out: torch.Tensor,
    deltas: torch.Tensor,
    grad_qkv: torch.Tensor,
    spans: Spans,
    launch: Launch,
) -> None:
    """Writes the queries' part of `grad_qkv`, and `deltas` (B, N, T) float32."""
    batch, frames, heads, _, head_dim = qkv_BTN3H.shape
    grid, tiles = _sizes(qkv_BTN3H, launch)
    scale = head_dim**-0.5
    _backward_queries[grid](
        qkv_BTN3H, out, grad_out, grad_qkv, sums, deltas, spans.key_first, spans.key_end, batch, frames, tiles, scale, scale * LOG2_E,
        heads, head_dim, *head_parts(head_dim), launch.rows, launch.step, launch.stages, num_warps=launch.warps,
    )  # fmt: skip


def backward_keys(
    qkv_BTN3H: torch.Tensor,
    sums: torch.Tensor,
    grad_out: torch.Tensor,
    deltas: torch.Tensor,
    grad_qkv: torch.Tensor,
    spans: Spans,
    launch: Launch,
) -> None:
    """Writes the keys' and values' parts of `grad_qkv`, from the `deltas` that backward_queries left."""
    batch, frames, heads, _, head_dim = qkv_BTN3H.shape
    grid, tiles = _sizes(qkv_BTN3H, launch)
    scale = head_dim**-0.5
    _backward_keys[grid](
        qkv_BTN3H, grad_out, grad_qkv, sums, deltas, spans.query_first, spans.query_end, batch, frames, tiles, scale, scale * LOG2_E,
        heads, head_dim, *head_parts(head_dim), launch.rows, launch.step, launch.stages, num_warps=launch.warps,
    )  # fmt: skip


def backward(
    qkv_BTN3H: torch.Tensor, out: torch.Tensor, sums: torch.Tensor, grad_out: torch.Tensor, spans: Spans, plan: Plan
) -> torch.Tensor:
    """Gradient of the packed projection, in its layout."""
    grad_qkv, deltas = torch.empty_like(qkv_BTN3H), torch.empty_like(sums)
    if grad_qkv.numel():
        backward_queries(qkv_BTN3H, out, sums, grad_out, deltas, grad_qkv, spans, plan.queries)
        backward_keys(qkv_BTN3H, sums, grad_out, deltas, grad_qkv, spans, plan.keys)
    return grad_qkv


class VarlenAttention(torch.autograd.Function):
    """Saves the packed projection, the output, one float a (frame, head) and the spans."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv_BTN3H: torch.Tensor, document_starts_BD: torch.Tensor, prefix_lengths_BD: torch.Tensor | None
    ) -> torch.Tensor:
        spans = document_spans(document_starts_BD, prefix_lengths_BD, qkv_BTN3H.shape[1])
        ctx.plan = default_plan(qkv_BTN3H.shape[-1], qkv_BTN3H.dtype, packed=document_starts_BD.shape[1] > 1)
        out, sums = forward(qkv_BTN3H, spans, ctx.plan)
        ctx.save_for_backward(qkv_BTN3H, out, sums, *spans)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        qkv_BTN3H, out, sums, *spans = ctx.saved_tensors
        return backward(qkv_BTN3H, out, sums, grad_out.contiguous(), Spans(*spans), ctx.plan), None, None
