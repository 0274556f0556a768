"""Packed-document attention in Triton, forward: a tile of queries walks over the keys of its own documents, softmax on line.

A walk inside one document runs without a mask up to the diagonal. Reads the packed projection (B, T, N, 3, H) in place, or
(B, T, G, R + 2, H) where R heads of queries share a key and a value; row offsets are 64-bit. B rows, T frames, N heads, H head width.
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
def _walk_keys(
    acc, acc_rest, highest, total, query, query_rest, keys, source, source_rest, line, column, begin, end, key_first, key_end, log2_scale,
    stride: tl.constexpr, MASKED: tl.constexpr, BULK: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr,
    SPLIT: tl.constexpr, H: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys begin..end; `keys` points at row 0 of this row's keys, values lie H further.

    For bulk copies the same keys begin at row `line` and column `column` of `source`.
    """
    offset = tl.arange(0, STEP)
    for position in tl.range(begin, end, STEP, num_stages=STAGES):
        frame = position + offset
        place = keys + frame.to(tl.int64)[:, None] * stride
        inside = frame < end
        key = load_step(place, inside, source, line + position, column, MASKED, BULK, 0, WIDTH, H)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        if SPLIT:
            key_rest = load_step(place, inside, source_rest, line + position, column, MASKED, BULK, WIDTH, REST, H)
            scores = tl.dot(query_rest, tl.trans(key_rest), scores, input_precision="ieee")
        if MASKED:
            seen = (frame[None, :] >= key_first[:, None]) & (frame[None, :] < key_end[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        # The scale goes into the exponent's multiply-add; it is positive, so the maximum may be taken before it.
        new_highest = tl.maximum(highest, tl.max(scores, axis=1) * log2_scale)
        weights = tl.exp2(scores * log2_scale - new_highest[:, None])
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, axis=1)
        weights = weights.to(query.dtype)
        value = load_step(place + H, inside, source, line + position, column + H, MASKED, BULK, 0, WIDTH, H)
        acc = tl.dot(weights, value, acc * decay[:, None], input_precision="ieee")
        if SPLIT:
            value_rest = load_step(place + H, inside, source_rest, line + position, column + H, MASKED, BULK, WIDTH, REST, H)
            acc_rest = tl.dot(weights, value_rest, acc_rest * decay[:, None], input_precision="ieee")
        highest = new_highest
    return acc, acc_rest, highest, total


@triton.jit
def _forward(
    qkv, source, source_rest, out, sums, key_firsts, key_ends, batch, frames, tiles, together, log2_scale,
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
    queries = keys - (SHARED - head % SHARED) * H + frame.to(tl.int64)[:, None] * stride
    query = load_columns(queries, inside, True, 0, WIDTH, H)
    query_rest = query
    if SPLIT:
        query_rest = load_columns(queries, inside, True, WIDTH, REST, H)
    # Rows behind the end repeat the last one's range, so that they never hold an empty softmax.
    key_first = tl.load(key_firsts + row * frames + tl.minimum(frame, last))
    key_end = tl.load(key_ends + row * frames + tl.minimum(frame, last))
    begin, middle, end = key_range(key_firsts, key_ends, row * frames, tile * ROWS, last, STEP)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    acc_rest = tl.zeros((ROWS, REST), tl.float32)
    highest = tl.full((ROWS,), -1.0e30, tl.float32)
    line = (row * frames).to(tl.int32)
    total = tl.zeros((ROWS,), tl.float32)
    acc, acc_rest, highest, total = _walk_keys(
        acc, acc_rest, highest, total, query, query_rest, keys, source, source_rest, line, column, begin, middle, key_first, key_end,
        log2_scale, stride, False, BULK, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    acc, acc_rest, highest, total = _walk_keys(
        acc, acc_rest, highest, total, query, query_rest, keys, source, source_rest, line, column, middle, end, key_first, key_end,
        log2_scale, stride, True, BULK, STEP, WIDTH, REST, SPLIT, H, STAGES,
    )  # fmt: skip
    place = out + ((row * frames + frame)[:, None] * heads + head) * H
    store_columns(place, acc / total[:, None], inside, 0, WIDTH, H)
    if SPLIT:
        store_columns(place, acc_rest / total[:, None], inside, WIDTH, REST, H)
    tl.store(sums + (row * heads + head) * frames + frame, highest + tl.log2(total), mask=inside)


def forward(qkv_BTN3H: torch.Tensor, spans: Spans, launch: Launch) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, T, N*H) and base-2 log-sum-exp of the scaled scores (B, N, T) float32."""
    batch, frames, heads, shared, head_dim = query_shape(qkv_BTN3H)
    out = torch.empty(batch, frames, heads * head_dim, dtype=qkv_BTN3H.dtype, device=qkv_BTN3H.device)
    sums = torch.empty(batch, heads, frames, dtype=torch.float32, device=qkv_BTN3H.device)
    grid, tiles, together = sizes(qkv_BTN3H, launch, heads=heads)
    if out.numel():
        sources = bulk_source(qkv_BTN3H.view(batch * frames, -1), launch, head_dim)
        _forward[grid](
            qkv_BTN3H, *sources, out, sums, spans.key_first, spans.key_end, batch, frames, tiles, together, head_dim**-0.5 * LOG2_E,
            heads, shared, head_dim, *head_parts(head_dim), launch.rows, launch.step, launch.stages, bulk_fits(launch, head_dim),
            num_warps=launch.warps, maxnreg=launch.registers,
        )  # fmt: skip
    return out, sums
