"""Attention of one new frame a row over its cache in Triton.

A program takes one head of one row and one chunk of slots; where a cache has several chunks, a second kernel joins them. The chunk's size
is fixed, so the order of the sums, and with it a row's result, does not depend on the rows beside it. The new key and value come from the
projection, never from the cache: the program of chunk 0 stores them while the others read older slots.
Memory-bound: each slot is read once, products are elementwise. B rows, N heads, S slots, H head width; offsets are 64-bit.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
CHUNK = 128  # slots of a program
STEP = 32  # slots read at once
WARPS = 4


@triton.jit
def _chunk(
    qkv, keys, values, lengths, out, parts, sums, log2_scale, slots, chunks,
    N: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, STEP: tl.constexpr, JOINED: tl.constexpr,
):  # fmt: skip
    head_row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    row = head_row // N
    cols = tl.arange(0, WIDTH)
    wide = cols < H
    length = tl.maximum(tl.minimum(tl.load(lengths + row).to(tl.int32), slots - 1), 0)
    first = chunk * CHUNK
    packed = qkv + head_row * 3 * H + cols
    query = tl.load(packed, mask=wide, other=0.0).to(tl.float32) * log2_scale
    cache = head_row * slots * H
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    mixed = tl.zeros((WIDTH,), tl.float32)
    if chunk == 0:
        key = tl.load(packed + H, mask=wide, other=0.0)
        value = tl.load(packed + 2 * H, mask=wide, other=0.0)
        tl.store(keys + cache + length.to(tl.int64) * H + cols, key, mask=wide)
        tl.store(values + cache + length.to(tl.int64) * H + cols, value, mask=wide)
        top = tl.sum(query * key.to(tl.float32))
        total += 1.0
        mixed += value.to(tl.float32)
    for begin in range(first, tl.minimum(first + CHUNK, length), STEP):
        slot = begin + tl.arange(0, STEP)
        offsets = cache + slot.to(tl.int64)[:, None] * H + cols[None, :]
        inside = (slot < length)[:, None] & wide[None, :]
        key = tl.load(keys + offsets, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(values + offsets, mask=inside, other=0.0).to(tl.float32)
        scores = tl.where(slot < length, tl.sum(key * query[None, :], axis=1), float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=0))
        weights = tl.exp2(scores - higher)
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, axis=0)
        mixed = mixed * shrink + tl.sum(weights[:, None] * value, axis=0)
        top = higher
    if JOINED:
        place = head_row * chunks + chunk
        tl.store(parts + place * WIDTH + cols, mixed)
        tl.store(sums + place * 2, top)
        tl.store(sums + place * 2 + 1, total)
    else:
        tl.store(out + head_row * H + cols, (mixed / total).to(out.dtype.element_ty), mask=wide)


@triton.jit
def _join(parts, sums, out, chunks, H: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr):
    head_row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    chunk = tl.arange(0, CHUNKS)
    place = head_row * chunks + chunk
    there = chunk < chunks
    top = tl.load(sums + place * 2, mask=there, other=float("-inf"))
    total = tl.load(sums + place * 2 + 1, mask=there, other=0.0)
    weights = tl.exp2(top - tl.max(top, axis=0))
    used = there & (total > 0)  # the parts of chunks beyond the length hold nothing
    mixed = tl.load(parts + place[:, None] * WIDTH + cols[None, :], mask=used[:, None], other=0.0)
    joined = tl.sum(mixed * weights[:, None], axis=0) / tl.sum(total * weights, axis=0)
    tl.store(out + head_row * H + cols, joined.to(out.dtype.element_ty), mask=cols < H)


def decode_attention(qkv_BN3H: torch.Tensor, keys_BNSH: torch.Tensor, values_BNSH: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """(B, N*H); one launch where the cache is one chunk, else two."""
    rows, heads, _, head_dim = qkv_BN3H.shape
    slots = keys_BNSH.shape[2]
    chunks, width = triton.cdiv(slots, CHUNK), max(16, triton.next_power_of_2(head_dim))
    out = torch.empty(rows, heads * head_dim, dtype=qkv_BN3H.dtype, device=qkv_BN3H.device)
    if rows == 0:
        return out
    joined = chunks > 1
    parts = torch.empty(rows * heads * chunks if joined else 0, width, dtype=torch.float32, device=out.device)
    sums = torch.empty(rows * heads * chunks if joined else 0, 2, dtype=torch.float32, device=out.device)
    step = min(STEP, triton.next_power_of_2(slots))
    _chunk[(rows * heads, chunks)](
        qkv_BN3H, keys_BNSH, values_BNSH, lengths_B, out, parts, sums, head_dim**-0.5 * LOG2_E, slots, chunks,
        heads, head_dim, width, CHUNK, step, joined, num_warps=WARPS,
    )  # fmt: skip
    if joined:
        _join[(rows * heads,)](parts, sums, out, chunks, head_dim, width, triton.next_power_of_2(chunks), num_warps=WARPS)
    return out
