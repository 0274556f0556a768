"""Frame embedding in Triton: the Q code vectors of a frame and its position's in one pass, and a deterministic gradient of the tables.

The gradient sorts the ids of both tables at once, in 16 bits where they fit; then one program sums, in float32, all rows of the gradient
that an id touched. Of a frequent id (`<pad>`) whole chunks of the sorted list were summed by programs of their own before. No atomics: the
same input gives the same bits. X frames, Q codes a frame, V rows of a table of width E.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK = 64  # neighbours of the sorted list that are summed beforehand where all are one id
KEYS_A_PROGRAM = 1_024


@dataclass(frozen=True)
class Launch:
    """Columns of a row at once, warps, and for the gradient rows at once."""

    columns: int
    warps: int
    rows: int = 1


# Measured best on an H200 (kernels/README.md).
FORWARD = Launch(512, 1)
BACKWARD = Launch(512, 2, 8)


@triton.jit
def _forward(
    codes, table, positions, position_table, out, table_rows, position_rows,
    Q: tl.constexpr, E: tl.constexpr, D: tl.constexpr, CONCAT: tl.constexpr, HAS_POSITION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0).to(tl.int64)
    for begin in tl.static_range(0, D, BLOCK):
        col = begin + tl.arange(0, BLOCK)
        inside = col < D
        total = tl.zeros((BLOCK,), tl.float32)
        if CONCAT:
            code = tl.load(codes + frame * Q + col // E, mask=inside, other=0).to(tl.int64)
            known = (code >= 0) & (code < table_rows)
            values = tl.load(table + code * E + col % E, mask=inside & known, other=0.0).to(tl.float32)
            total += tl.where(known, values, float("nan"))
        else:
            for q in tl.static_range(Q):
                code = tl.load(codes + frame * Q + q).to(tl.int64)
                known = (code >= 0) & (code < table_rows)
                values = tl.load(table + code * E + col, mask=inside & known, other=0.0).to(tl.float32)
                total += tl.where(known, values, float("nan"))
        if HAS_POSITION:
            position = tl.load(positions + frame).to(tl.int64)
            known = (position >= 0) & (position < position_rows)
            values = tl.load(position_table + position * D + col, mask=inside & known, other=0.0).to(tl.float32)
            total += tl.where(known, values, float("nan"))
        tl.store(out + frame * D + col, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _keys(codes, positions, keys, code_count, count, table_rows, position_rows, BLOCK: tl.constexpr):
    """Sort keys: 0..V-1 a code, V a code outside its table, from V + 1 on a position, then a position outside its table."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_code = place < code_count
    code = tl.load(codes + place, mask=is_code, other=0).to(tl.int64)
    position = tl.load(positions + (place - code_count), mask=(place >= code_count) & (place < count), other=0).to(tl.int64)
    code = tl.where((code >= 0) & (code < table_rows), code, table_rows)
    position = tl.where((position >= 0) & (position < position_rows), position, position_rows)
    key = tl.where(is_code, code, table_rows + 1 + position)
    tl.store(keys + place, key.to(keys.dtype.element_ty), mask=place < count)


@triton.jit
def _add_rows(
    total, grad_rows, order, begin, end, first_place, col, SHARED: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """`total` (ROWS, columns) and the gradient rows of sorted places begin..end; SHARED ids in turn share a row (Q codes of a frame)."""
    for first in range(begin, end, ROWS):
        place = first + tl.arange(0, ROWS)
        row = (tl.load(order + place, mask=place < end, other=first_place) - first_place) // SHARED
        inside = (place < end)[:, None] & (col < E)[None, :]
        total += tl.load(grad_rows + row[:, None] * E + col[None, :], mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def _sum_chunks(
    grad_rows, keys, order, partial, first_key, last_key, first_place,
    SHARED: tl.constexpr, E: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of a whole chunk of the sorted list, where it is all one id of this table."""
    chunk = tl.program_id(0).to(tl.int64)
    begin = chunk * CHUNK
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + begin).to(tl.int32)
    if (key == tl.load(keys + begin + CHUNK - 1).to(tl.int32)) & (key >= first_key) & (key < last_key):
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        total = _add_rows(total, grad_rows, order, begin, begin + CHUNK, first_place, col, SHARED, E, ROWS)
        tl.store(partial + chunk * E + col, tl.sum(total, axis=0), mask=col < E)


@triton.jit
def _sum_ids(
    grad_rows, order, starts, partial, grad, first_key, first_place,
    SHARED: tl.constexpr, E: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum over one id's run of the sorted list: its rows before the first whole chunk, the chunks, the rows after; 0 without any."""
    identity = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin = tl.load(starts + first_key + identity)
    end = tl.load(starts + first_key + identity + 1)
    first_chunk, last_chunk = tl.cdiv(begin, CHUNK), end // CHUNK
    whole = first_chunk < last_chunk
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    total = _add_rows(total, grad_rows, order, begin, tl.where(whole, first_chunk * CHUNK, end), first_place, col, SHARED, E, ROWS)
    for first in range(first_chunk, last_chunk, ROWS):
        chunk = first + tl.arange(0, ROWS)
        inside = (chunk < last_chunk)[:, None] & (col < E)[None, :]
        total += tl.load(partial + chunk[:, None] * E + col[None, :], mask=inside, other=0.0)
    total = _add_rows(total, grad_rows, order, tl.where(whole, last_chunk * CHUNK, end), end, first_place, col, SHARED, E, ROWS)
    tl.store(grad + identity * E + col, tl.sum(total, axis=0).to(grad.dtype.element_ty), mask=col < E)


def _columns(width: int, launch: Launch) -> int:
    return min(launch.columns, max(16, triton.next_power_of_2(width)))


def forward(
    codes_XQ: torch.Tensor,
    table_VE: torch.Tensor,
    positions_X: torch.Tensor | None,
    position_table_PD: torch.Tensor | None,
    concat: bool,
    launch: Launch = FORWARD,
) -> torch.Tensor:
    """(X, D): D = E summed, Q*E concatenated."""
    frames, codes = codes_XQ.shape
    width = table_VE.shape[1] * (codes if concat else 1)
    out = torch.empty(frames, width, dtype=table_VE.dtype, device=table_VE.device)
    if out.numel():
        position_rows = 0 if position_table_PD is None else position_table_PD.shape[0]
        _forward[(frames,)](
            codes_XQ, table_VE, positions_X, position_table_PD, out, table_VE.shape[0], position_rows,
            codes, table_VE.shape[1], width, concat, positions_X is not None, _columns(width, launch), num_warps=launch.warps,
        )  # fmt: skip
    return out


class Sorted(NamedTuple):
    """The sorted keys, the place of each before the sort, and the first sorted place of each key."""

    keys: torch.Tensor
    order: torch.Tensor
    starts: torch.Tensor


def sort_ids(codes_XQ: torch.Tensor, table_rows: int, positions_X: torch.Tensor | None, position_rows: int) -> Sorted:
    """All ids of a batch in ascending order, positions behind the codes."""
    codes, bins = codes_XQ.numel(), table_rows + position_rows + 2
    count = codes + (0 if positions_X is None else positions_X.numel())
    narrow = bins <= torch.iinfo(torch.int16).max  # a radix sort takes a pass for every 8 bits
    keys = torch.empty(count, dtype=torch.int16 if narrow else torch.int32, device=codes_XQ.device)
    if count:
        grid = (triton.cdiv(count, KEYS_A_PROGRAM),)
        _keys[grid](
            codes_XQ, codes_XQ if positions_X is None else positions_X, keys, codes, count, table_rows, position_rows, KEYS_A_PROGRAM
        )
    ordered, order = torch.sort(keys, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(bins, dtype=keys.dtype, device=keys.device))
    return Sorted(ordered, order, starts)


def table_gradient(
    ids: Sorted, grad_rows: torch.Tensor, shared: int, table: torch.Tensor, first_key: int, first_place: int, launch: Launch = BACKWARD
) -> torch.Tensor:
    """Gradient of `table`, whose row i has the sort key first_key + i: the float32 sum over the id's occurrences, in the table's dtype.

    The id at place m before the sort belongs to row (m - first_place) // shared of `grad_rows`.
    """
    rows, width = table.shape
    grad = torch.empty_like(table)
    if not grad.numel():
        return grad
    chunks, columns = ids.keys.numel() // CHUNK, _columns(width, launch)
    partial = torch.empty(chunks, width, dtype=torch.float32, device=table.device)
    blocks = triton.cdiv(width, columns)
    sizes = (shared, width, CHUNK, launch.rows, columns)
    if chunks:
        _sum_chunks[(chunks, blocks)](
            grad_rows, ids.keys, ids.order, partial, first_key, first_key + rows, first_place, *sizes,
            num_warps=launch.warps,
        )  # fmt: skip
    _sum_ids[(rows, blocks)](grad_rows, ids.order, ids.starts, partial, grad, first_key, first_place, *sizes, num_warps=launch.warps)
    return grad


def gradients(
    codes_XQ: torch.Tensor,
    table_VE: torch.Tensor,
    positions_X: torch.Tensor | None,
    position_table_PD: torch.Tensor | None,
    grad_XD: torch.Tensor,
    concat: bool,
    launch: Launch = BACKWARD,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of the code table and, where there is one, of the position table."""
    rows = table_VE.shape[0]
    ids = sort_ids(codes_XQ, rows, positions_X, 0 if position_table_PD is None else position_table_PD.shape[0])
    grad_table = table_gradient(ids, grad_XD, 1 if concat else codes_XQ.shape[1], table_VE, 0, 0, launch)
    if position_table_PD is None:
        return grad_table, None
    return grad_table, table_gradient(ids, grad_XD, 1, position_table_PD, rows + 1, codes_XQ.numel(), launch)


class FrameEmbedding(torch.autograd.Function):
    """Saves the ids, not the vectors."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        codes_XQ: torch.Tensor,
        table_VE: torch.Tensor,
        positions_X: torch.Tensor | None,
        position_table_PD: torch.Tensor | None,
        concat: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(codes_XQ, table_VE, positions_X, position_table_PD)
        ctx.concat = concat
        return forward(codes_XQ, table_VE, positions_X, position_table_PD, concat)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_XD: torch.Tensor) -> tuple[None, torch.Tensor | None, None, torch.Tensor | None, None]:
        codes_XQ, table_VE, positions_X, position_table_PD = ctx.saved_tensors
        upstream = grad_XD.contiguous()
        grad_table, grad_positions = gradients(codes_XQ, table_VE, positions_X, position_table_PD, upstream, ctx.concat)
        return None, grad_table, None, grad_positions, None
