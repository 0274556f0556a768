"""Attention of one new frame a row over its cache in Triton.

A program takes one head of one row and one chunk of slots, all of them on their way before anything is computed; where a cache has several
chunks, a second kernel joins them. The chunk's size is fixed, so the order of the sums, and with it a row's result, does not depend on the
rows beside it. The new key and value come from the projection, never from the cache: the program of chunk 0 stores them while the others
read older slots, which a kernel launched early reads before the projection has ended.
Memory-bound: each slot is read once, products are elementwise. B rows, N heads, S slots, H head width; offsets are 64-bit.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

import torch
import triton
import triton.language as tl

from uniaudio.kernels.early import end_of_the_launch_before

LOG2_E = 1.4426950408889634
CHUNK = 64  # slots of a program
WARPS = 4


@triton.jit
def _chunk(
    qkv, keys, values, lengths, out, parts, sums, log2_scale, slots, chunks,
    N: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, JOINED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    head_row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    cols = tl.arange(0, WIDTH)
    wide = cols < H
    length = tl.maximum(tl.minimum(tl.load(lengths + head_row // N).to(tl.int32), slots - 1), 0)
    slot = chunk * CHUNK + tl.arange(0, CHUNK)
    cache = head_row * slots * H
    offsets = cache + slot.to(tl.int64)[:, None] * H + cols[None, :]
    inside = (slot < length)[:, None] & wide[None, :]
    old_keys = tl.load(keys + offsets, mask=inside, other=0.0)
    old_values = tl.load(values + offsets, mask=inside, other=0.0)
    if EARLY:
        end_of_the_launch_before()
    else:
        tl.debug_barrier()  # or the compiler lets the loads wait for one another to save registers
    place = head_row * chunks + chunk
    if (chunk == 0) | (chunk * CHUNK < length):
        packed = qkv + head_row * 3 * H + cols
        query = tl.load(packed, mask=wide, other=0.0).to(tl.float32) * log2_scale
        scores = tl.where(slot < length, tl.sum(old_keys.to(tl.float32) * query[None, :], axis=1), float("-inf"))
        top = tl.max(scores, axis=0)
        own, own_value = tl.full((), float("-inf"), tl.float32), tl.zeros((WIDTH,), tl.float32)
        if chunk == 0:
            key = tl.load(packed + H, mask=wide, other=0.0)
            value = tl.load(packed + 2 * H, mask=wide, other=0.0)
            tl.store(keys + cache + length.to(tl.int64) * H + cols, key, mask=wide)
            tl.store(values + cache + length.to(tl.int64) * H + cols, value, mask=wide)
            own, own_value = tl.sum(query * key.to(tl.float32)), value.to(tl.float32)
            top = tl.maximum(top, own)
        weights, weight = tl.exp2(scores - top), tl.exp2(own - top)
        total = tl.sum(weights, axis=0) + weight
        mixed = tl.sum(weights[:, None] * old_values.to(tl.float32), axis=0) + weight * own_value
        if JOINED:
            tl.store(parts + place * WIDTH + cols, mixed)
            tl.store(sums + place * 2, top)
            tl.store(sums + place * 2 + 1, total)
        else:
            tl.store(out + head_row * H + cols, (mixed / total).to(out.dtype.element_ty), mask=wide)
    else:
        tl.store(sums + place * 2, float("-inf"))
        tl.store(sums + place * 2 + 1, 0.0)


@triton.jit
def _join(parts, sums, out, chunks, H: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        end_of_the_launch_before()
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


def decode_attention(
    qkv_BN3H: torch.Tensor, keys_BNSH: torch.Tensor, values_BNSH: torch.Tensor, lengths_B: torch.Tensor, early: bool
) -> torch.Tensor:
    """(B, N*H); one launch where the cache is one chunk, else two."""
    rows, heads, _, head_dim = qkv_BN3H.shape
    slots = keys_BNSH.shape[2]
    chunk = min(CHUNK, max(2, triton.next_power_of_2(slots)))
    chunks, width = triton.cdiv(slots, chunk), max(16, triton.next_power_of_2(head_dim))
    out = torch.empty(rows, heads * head_dim, dtype=qkv_BN3H.dtype, device=qkv_BN3H.device)
    if rows == 0:
        return out
    joined = chunks > 1
    parts = torch.empty(rows * heads * chunks if joined else 0, width, dtype=torch.float32, device=out.device)
    sums = torch.empty(rows * heads * chunks if joined else 0, 2, dtype=torch.float32, device=out.device)
    options = {"num_warps": WARPS, **({"launch_pdl": True} if early else {})}
    _chunk[(rows * heads, chunks)](
        qkv_BN3H, keys_BNSH, values_BNSH, lengths_B, out, parts, sums, head_dim**-0.5 * LOG2_E, slots, chunks,
        heads, head_dim, width, chunk, joined, early, **options,
    )  # fmt: skip
    if joined:
        _join[(rows * heads,)](parts, sums, out, chunks, head_dim, width, triton.next_power_of_2(chunks), early, **options)
    return out
