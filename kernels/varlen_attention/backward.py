"""Packed-document attention in Triton, backward, in two kernels that write the packed gradient in place.

The first walks over keys for the gradient of a tile of queries and leaves delta = sum(out * grad_out); the second walks over queries for
the gradients of a tile of keys and values. Scores are computed again from q, k and the log-sum-exp; no atomics, so the result is
deterministic. B rows, T frames, N heads, H head width.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

import torch
import triton
import triton.language as tl

from uniaudio.kernels.varlen_attention.boundaries import Spans
from uniaudio.kernels.varlen_attention.tiles import (
    LOG2_E,
    Launch,
    Plan,
    bulk_fits,
    bulk_source,
    head_parts,
    key_range,
    load_columns,
    load_step,
    query_shape,
    sizes,
    store_columns,
    tile_of_program,
)


@triton.jit
def _walk_keys_backward(
    acc, acc_rest, query, query_rest, grad, grad_rest, sums, delta, keys, source, source_rest, line, column, begin, end,
    key_first, key_end, log2_scale, stride: tl.constexpr, MASKED: tl.constexpr, BULK: tl.constexpr, STEP: tl.constexpr,
    WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr, H: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Adds to `acc` the gradient of the queries from keys begin..end, without the scale."""
    offset = tl.arange(0, STEP)
    for position in tl.range(begin, end, STEP, num_stages=STAGES):
        frame = position + offset
        place = keys + frame.to(tl.int64)[:, None] * stride
        inside = frame < end
        key = load_step(place, inside, source, line + position, column, MASKED, BULK, 0, WIDTH, H)
        key_rest = key
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        value = load_step(place + H, inside, source, line + position, column + H, MASKED, BULK, 0, WIDTH, H)
        grad_weights = tl.dot(grad, tl.trans(value), input_precision="ieee")
        if SPLIT:
            key_rest = load_step(place, inside, source_rest, line + position, column, MASKED, BULK, WIDTH, REST, H)
            scores = tl.dot(query_rest, tl.trans(key_rest), scores, input_precision="ieee")
            value_rest = load_step(place + H, inside, source_rest, line + position, column + H, MASKED, BULK, WIDTH, REST, H)
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
    qkv, source, source_rest, out, grad_out, grad_qkv, sums, deltas, key_firsts, key_ends,
    batch, frames, tiles, together, scale, log2_scale,
    heads: tl.constexpr, SHARED: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    tile, row, head = tile_of_program(tiles, batch, heads, together, True)
    frame = tile * ROWS + tl.arange(0, ROWS)
    inside = frame < frames
    last = tl.minimum(tile * ROWS + ROWS, frames) - 1
    stride: tl.constexpr = heads // SHARED * (SHARED + 2) * H
    column = (head // SHARED * (SHARED + 2) + SHARED) * H
    keys = qkv + row * frames * stride + column
    packed = row * frames * stride + column - (SHARED - head % SHARED) * H + frame.to(tl.int64)[:, None] * stride
    place = ((row * frames + frame)[:, None] * heads + head) * H
    query = load_columns(qkv + packed, inside, True, 0, WIDTH, H)
    grad = load_columns(grad_out + place, inside, True, 0, WIDTH, H)
    query_rest, grad_rest = query, grad
    delta = tl.sum(load_columns(out + place, inside, True, 0, WIDTH, H).to(tl.float32) * grad.to(tl.float32), axis=1)
    if SPLIT:
        query_rest = load_columns(qkv + packed, inside, True, WIDTH, REST, H)
        grad_rest = load_columns(grad_out + place, inside, True, WIDTH, REST, H)
        delta += tl.sum(load_columns(out + place, inside, True, WIDTH, REST, H).to(tl.float32) * grad_rest.to(tl.float32), axis=1)
    line = (row * heads + head) * frames
    tl.store(deltas + line + frame, delta, mask=inside)
    sum_of_row = tl.load(sums + line + tl.minimum(frame, last))
    key_first = tl.load(key_firsts + row * frames + tl.minimum(frame, last))
    key_end = tl.load(key_ends + row * frames + tl.minimum(frame, last))
    begin, middle, end = key_range(key_firsts, key_ends, row * frames, tile * ROWS, last, STEP)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    acc_rest = tl.zeros((ROWS, REST), tl.float32)
    first_line = (row * frames).to(tl.int32)
    acc, acc_rest = _walk_keys_backward(
        acc, acc_rest, query, query_rest, grad, grad_rest, sum_of_row, delta, keys, source, source_rest, first_line, column,
        begin, middle, key_first, key_end, log2_scale, stride, False, BULK, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    acc, acc_rest = _walk_keys_backward(
        acc, acc_rest, query, query_rest, grad, grad_rest, sum_of_row, delta, keys, source, source_rest, first_line, column,
        middle, end, key_first, key_end, log2_scale, stride, True, BULK, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    store_columns(grad_qkv + packed, acc * scale, inside, 0, WIDTH, H)
    if SPLIT:
        store_columns(grad_qkv + packed, acc_rest * scale, inside, WIDTH, REST, H)


@triton.jit
def _walk_queries(
    grad_key, grad_key_rest, grad_value, grad_value_rest, key, key_rest, value, value_rest, queries, grads, sums, deltas,
    source, source_rest, grad_source, grad_source_rest, line, column, grad_column,
    begin, end, query_first, query_end, log2_scale, stride: tl.constexpr, out_stride: tl.constexpr,
    MASKED: tl.constexpr, BULK: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr,
    H: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Adds to the gradients of keys (without the scale) and values what queries begin..end give."""
    offset = tl.arange(0, STEP)
    for position in tl.range(begin, end, STEP, num_stages=STAGES):
        frame = position + offset
        inside = frame >= 0  # the first masked step may reach below the row's first frame
        place = queries + frame.to(tl.int64)[:, None] * stride
        grad_place = grads + frame.to(tl.int64)[:, None] * out_stride
        query = load_step(place, inside, source, line + position, column, MASKED, BULK, 0, WIDTH, H)
        grad = load_step(grad_place, inside, grad_source, line + position, grad_column, MASKED, BULK, 0, WIDTH, H)
        query_rest, grad_rest = query, grad
        scores = tl.dot(key, tl.trans(query), input_precision="ieee")
        if SPLIT:
            query_rest = load_step(place, inside, source_rest, line + position, column, MASKED, BULK, WIDTH, REST, H)
            grad_rest = load_step(grad_place, inside, grad_source_rest, line + position, grad_column, MASKED, BULK, WIDTH, REST, H)
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
    qkv, source, source_rest, grad_out, grad_source, grad_source_rest, grad_qkv, sums, deltas, query_firsts, query_ends,
    batch, frames, tiles, together, scale, log2_scale,
    heads: tl.constexpr, SHARED: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    groups: tl.constexpr = heads // SHARED
    tile, row, group = tile_of_program(tiles, batch, groups, together, False)
    frame = tile * ROWS + tl.arange(0, ROWS)
    inside = frame < frames
    last = tl.minimum(tile * ROWS + ROWS, frames) - 1
    stride: tl.constexpr = groups * (SHARED + 2) * H
    packed = row * frames * stride + (group * (SHARED + 2) + SHARED) * H + frame.to(tl.int64)[:, None] * stride
    key = load_columns(qkv + packed, inside, True, 0, WIDTH, H)
    value = load_columns(qkv + packed + H, inside, True, 0, WIDTH, H)
    key_rest, value_rest = key, value
    if SPLIT:
        key_rest = load_columns(qkv + packed, inside, True, WIDTH, REST, H)
        value_rest = load_columns(qkv + packed + H, inside, True, WIDTH, REST, H)
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
    for sharing in range(SHARED):
        head = group * SHARED + sharing
        column = (group * (SHARED + 2) + sharing) * H
        queries = qkv + row * frames * stride + column
        grads = grad_out + (row * frames * heads + head) * H
        line = (row * heads + head) * frames
        first_line = (row * frames).to(tl.int32)
        grad_key, grad_key_rest, grad_value, grad_value_rest = _walk_queries(
            grad_key, grad_key_rest, grad_value, grad_value_rest, key, key_rest, value, value_rest, queries, grads,
            sums + line, deltas + line, source, source_rest, grad_source, grad_source_rest, first_line, column, head * H,
            begin, middle, query_first, query_end, log2_scale, stride, heads * H, True, BULK, STEP, WIDTH, REST, SPLIT, H, STAGES,
        )  # fmt: skip
        grad_key, grad_key_rest, grad_value, grad_value_rest = _walk_queries(
            grad_key, grad_key_rest, grad_value, grad_value_rest, key, key_rest, value, value_rest, queries, grads,
            sums + line, deltas + line, source, source_rest, grad_source, grad_source_rest, first_line, column, head * H,
            middle, end, query_first, query_end, log2_scale, stride, heads * H, False, BULK, STEP, WIDTH, REST, SPLIT, H, STAGES,
        )  # fmt: skip
    store_columns(grad_qkv + packed, grad_key * scale, inside, 0, WIDTH, H)
    store_columns(grad_qkv + packed + H, grad_value, inside, 0, WIDTH, H)
    if SPLIT:
        store_columns(grad_qkv + packed, grad_key_rest * scale, inside, WIDTH, REST, H)
        store_columns(grad_qkv + packed + H, grad_value_rest, inside, WIDTH, REST, H)


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
    batch, frames, heads, shared, head_dim = query_shape(qkv_BTN3H)
    grid, tiles, together = sizes(qkv_BTN3H, launch, heads=heads)
    scale = head_dim**-0.5
    sources = bulk_source(qkv_BTN3H.view(batch * frames, -1), launch, head_dim)
    _backward_queries[grid](
        qkv_BTN3H, *sources, out, grad_out, grad_qkv, sums, deltas, spans.key_first, spans.key_end, batch, frames, tiles, together,
        scale, scale * LOG2_E, heads, shared, head_dim, *head_parts(head_dim), launch.rows, launch.step, launch.stages,
        bulk_fits(launch, head_dim), num_warps=launch.warps, maxnreg=launch.registers,
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
    batch, frames, heads, shared, head_dim = query_shape(qkv_BTN3H)
    grid, tiles, together = sizes(qkv_BTN3H, launch, heads=heads // shared)
    scale = head_dim**-0.5
    sources = bulk_source(qkv_BTN3H.view(batch * frames, -1), launch, head_dim)
    grad_sources = bulk_source(grad_out.view(batch * frames, -1), launch, head_dim)
    _backward_keys[grid](
        qkv_BTN3H, *sources, grad_out, *grad_sources, grad_qkv, sums, deltas, spans.query_first, spans.query_end,
        batch, frames, tiles, together, scale, scale * LOG2_E, heads, shared, head_dim, *head_parts(head_dim),
        launch.rows, launch.step, launch.stages, bulk_fits(launch, head_dim), num_warps=launch.warps, maxnreg=launch.registers,
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
