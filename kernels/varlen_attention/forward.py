"""Packed-document attention in Triton, forward: a tile of queries walks over the keys of its own documents, softmax on line.

A walk inside one document runs without a mask up to the diagonal. Reads the packed projection (B, T, N, 3, H) in place; row offsets are
64-bit. B rows, T frames, N heads, H head width.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

import torch
import triton
import triton.language as tl

from uniaudio.kernels.varlen_attention.boundaries import Spans
from uniaudio.kernels.varlen_attention.tiles import LOG2_E, Plan, head_parts, key_range, load_columns, sizes, store_columns, tile_of_program


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
        scores = tl.dot(query, tl.trans(load_columns(place, inside, MASKED, 0, WIDTH, H)), input_precision="ieee")
        if SPLIT:
            scores = tl.dot(query_rest, tl.trans(load_columns(place, inside, MASKED, WIDTH, REST, H)), scores, input_precision="ieee")
        scores *= log2_scale
        if MASKED:
            seen = (frame[None, :] >= key_first[:, None]) & (frame[None, :] < key_end[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_highest[:, None])
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, axis=1)
        weights = weights.to(query.dtype)
        acc = tl.dot(weights, load_columns(place + H, inside, MASKED, 0, WIDTH, H), acc * decay[:, None], input_precision="ieee")
        if SPLIT:
            value_rest = load_columns(place + H, inside, MASKED, WIDTH, REST, H)
            acc_rest = tl.dot(weights, value_rest, acc_rest * decay[:, None], input_precision="ieee")
        highest = new_highest
    return acc, acc_rest, highest, total


@triton.jit
def _forward(
    qkv, out, sums, key_firsts, key_ends, batch, frames, tiles, log2_scale,
    heads: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile, row, head = tile_of_program(tiles, batch, heads, True)
    frame = tile * ROWS + tl.arange(0, ROWS)
    inside = frame < frames
    last = tl.minimum(tile * ROWS + ROWS, frames) - 1
    stride: tl.constexpr = heads * 3 * H
    base = qkv + row * frames * stride + head * 3 * H
    queries = base + frame.to(tl.int64)[:, None] * stride
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
    store_columns(place, acc / total[:, None], inside, 0, WIDTH, H)
    if SPLIT:
        store_columns(place, acc_rest / total[:, None], inside, WIDTH, REST, H)
    tl.store(sums + (row * heads + head) * frames + frame, highest + tl.log2(total), mask=inside)


def forward(qkv_BTN3H: torch.Tensor, spans: Spans, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, T, N*H) and base-2 log-sum-exp of the scaled scores (B, N, T) float32."""
    batch, frames, heads, _, head_dim = qkv_BTN3H.shape
    launch = plan.forward
    out = torch.empty(batch, frames, heads * head_dim, dtype=qkv_BTN3H.dtype, device=qkv_BTN3H.device)
    sums = torch.empty(batch, heads, frames, dtype=torch.float32, device=qkv_BTN3H.device)
    grid, tiles = sizes(qkv_BTN3H, launch)
    if out.numel():
        _forward[grid](
            qkv_BTN3H, out, sums, spans.key_first, spans.key_end, batch, frames, tiles, head_dim**-0.5 * LOG2_E,
            heads, head_dim, *head_parts(head_dim), launch.rows, launch.step, launch.stages, num_warps=launch.warps,
        )  # fmt: skip
    return out, sums
