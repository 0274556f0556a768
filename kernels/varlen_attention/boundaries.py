"""Which keys each query sees and which queries see each key, from the boundary tensor, in one small kernel.

The attention kernels need both directions: the forward pass walks the keys of a tile of queries, the backward pass also the queries of a
tile of keys. B rows, T frames, D documents.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from typing import NamedTuple

import torch
import triton
import triton.language as tl

FRAMES_A_PROGRAM = 128


class Spans(NamedTuple):
    """Half-open ranges of frames of the same row, each (B, T) int32."""

    key_first: torch.Tensor
    key_end: torch.Tensor
    query_first: torch.Tensor
    query_end: torch.Tensor


@triton.jit
def _spans(
    starts, prefixes, key_firsts, key_ends, query_firsts, query_ends, frames, documents,
    HAS_PREFIX: tl.constexpr, FRAMES: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    frame = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    first = tl.zeros((FRAMES,), tl.int32)
    end = tl.zeros((FRAMES,), tl.int32) + frames
    prefix = tl.zeros((FRAMES,), tl.int32)
    for begin in range(0, documents, DOCUMENTS):
        document = begin + tl.arange(0, DOCUMENTS)
        start = tl.load(starts + row * documents + document, mask=document < documents, other=frames).to(tl.int32)
        begun = start[None, :] <= frame[:, None]
        # Starts ascend: the latest begun document is the frame's own, the earliest not yet begun is where its own ends.
        latest = tl.max(tl.where(begun, start[None, :], 0), axis=1)
        if HAS_PREFIX:
            length = tl.load(prefixes + row * documents + document, mask=document < documents, other=0).to(tl.int32)
            own = begun & (start[None, :] == latest[:, None])
            here = tl.max(tl.where(own, length[None, :], 0), axis=1)
            prefix = tl.where(tl.max(begun.to(tl.int32), axis=1) > 0, here, prefix)
        first = tl.maximum(first, latest)
        end = tl.minimum(end, tl.min(tl.where(begun, frames, start[None, :]), axis=1))
    prefix_end = tl.minimum(first + prefix, end)
    inside = frame < frames
    place = row * frames + frame
    tl.store(key_firsts + place, first, mask=inside)
    tl.store(key_ends + place, tl.maximum(frame + 1, prefix_end), mask=inside)
    tl.store(query_firsts + place, tl.where(frame < prefix_end, first, frame), mask=inside)
    tl.store(query_ends + place, end, mask=inside)


def document_spans(document_starts_BD: torch.Tensor, prefix_lengths_BD: torch.Tensor | None, frames: int) -> Spans:
    """The four ranges of every frame; frames before the first start form a document of their own, without a prefix."""
    rows, documents = document_starts_BD.shape
    table = torch.empty(4, rows, frames, dtype=torch.int32, device=document_starts_BD.device)
    starts = document_starts_BD.contiguous()
    prefixes = starts if prefix_lengths_BD is None else prefix_lengths_BD.contiguous()
    grid = (triton.cdiv(frames, FRAMES_A_PROGRAM), rows)
    block = min(64, max(2, triton.next_power_of_2(documents)))
    _spans[grid](starts, prefixes, *table, frames, documents, prefix_lengths_BD is not None, FRAMES_A_PROGRAM, block, num_warps=4)
    return Spans(*table)
