"""Frame embedding in Triton: the Q code vectors of a frame and its position's in one pass, and a deterministic gradient of the tables.

The gradient sorts the ids, cuts each id's run of occurrences into pieces of at most PIECE, sums each piece in float32 in one program and
then each id's pieces: no atomics, so the same input gives the same bits, and a frequent id (`<pad>`) does not serialise.
X frames, Q codes a frame, V rows of a table of width E.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

import torch
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

PIECE = 64  # occurrences a program sums
MOST_COLUMNS = 2_048  # columns of a row a program handles at once


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
def _sum_pieces(
    rows, order, starts, ends, piece_starts, piece_ids, partial, table_rows,
    SHARED: tl.constexpr, E: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of the gradient rows of one piece of one id's occurrences; SHARED occurrences in turn share a row (Q codes of a frame)."""
    piece = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    identity = tl.load(piece_ids + piece)
    if identity < table_rows:
        begin = tl.load(starts + identity) + (piece - tl.load(piece_starts + identity)) * PIECE
        end = tl.minimum(begin + PIECE, tl.load(ends + identity))
        total = tl.zeros((BLOCK,), tl.float32)
        for place in range(begin, end):
            row = tl.load(order + place) // SHARED
            total += tl.load(rows + row * E + col, mask=col < E, other=0.0).to(tl.float32)
        tl.store(partial + piece * E + col, total, mask=col < E)


@triton.jit
def _sum_ids(partial, piece_starts, piece_counts, grad, E: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of one id's pieces; 0 for an id that did not occur."""
    identity = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin = tl.load(piece_starts + identity)
    total = tl.zeros((BLOCK,), tl.float32)
    for piece in range(begin, begin + tl.load(piece_counts + identity)):
        total += tl.load(partial + piece * E + col, mask=col < E, other=0.0)
    tl.store(grad + identity * E + col, total.to(grad.dtype.element_ty), mask=col < E)


def _block(width: int) -> int:
    return min(MOST_COLUMNS, max(16, triton.next_power_of_2(width)))


def forward(
    codes_XQ: torch.Tensor,
    table_VE: torch.Tensor,
    positions_X: torch.Tensor | None,
    position_table_PD: torch.Tensor | None,
    concat: bool,
) -> torch.Tensor:
    """(X, D): D = E summed, Q*E concatenated."""
    frames, codes = codes_XQ.shape
    width = table_VE.shape[1] * (codes if concat else 1)
    out = torch.empty(frames, width, dtype=table_VE.dtype, device=table_VE.device)
    if out.numel():
        position_rows = 0 if position_table_PD is None else position_table_PD.shape[0]
        _forward[(frames,)](
            codes_XQ, table_VE, positions_X, position_table_PD, out, table_VE.shape[0], position_rows,
            codes, table_VE.shape[1], width, concat, positions_X is not None, _block(width), num_warps=4,
        )  # fmt: skip
    return out


def table_gradient(ids_M: torch.Tensor, rows: torch.Tensor, shared: int, table: torch.Tensor) -> torch.Tensor:
    """Gradient of `table`: for each id the float32 sum of rows[m // shared] over its occurrences m in `ids_M`, in the table's dtype."""
    count, width = table.shape
    grad = torch.empty_like(table)
    sorted_M, order_M = torch.sort(ids_M.flatten().to(torch.int64), stable=True)
    all_ids = torch.arange(count, device=table.device)
    starts_V = torch.searchsorted(sorted_M, all_ids)
    ends_V = torch.searchsorted(sorted_M, all_ids, right=True)
    piece_counts_V = (ends_V - starts_V + PIECE - 1) // PIECE
    piece_ends_V = piece_counts_V.cumsum(0)
    piece_starts_V = piece_ends_V - piece_counts_V
    pieces = min(count, ids_M.numel()) + ids_M.numel() // PIECE  # an upper bound: the true count would stall the stream
    piece_ids = torch.searchsorted(piece_ends_V, torch.arange(pieces, device=table.device), right=True)
    partial = torch.empty(pieces, width, dtype=torch.float32, device=table.device)
    block = _block(width)
    if pieces:
        _sum_pieces[(pieces, triton.cdiv(width, block))](
            rows, order_M, starts_V, ends_V, piece_starts_V, piece_ids, partial, count, shared, width, PIECE, block, num_warps=4
        )
    if count:
        _sum_ids[(count, triton.cdiv(width, block))](partial, piece_starts_V, piece_counts_V, grad, width, block, num_warps=4)
    return grad


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
        grad_XD = grad_XD.contiguous()
        grad_table, grad_positions = None, None
        if ctx.needs_input_grad[1]:
            grad_table = table_gradient(codes_XQ, grad_XD, 1 if ctx.concat else codes_XQ.shape[1], table_VE)
        if positions_X is not None and ctx.needs_input_grad[3]:
            grad_positions = table_gradient(positions_X, grad_XD, 1, position_table_PD)
        return None, grad_table, None, grad_positions, None
