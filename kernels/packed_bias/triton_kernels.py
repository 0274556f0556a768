"""The sum over rows of the queries' and values' columns of a packed gradient, in Triton: two thirds of its bytes, each read once.

R rows, N heads, H head width; the keys' columns are not read.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

from uniaudio.kernels.column_sum import column_sum
from uniaudio.kernels.device import streaming_multiprocessors


@dataclass(frozen=True)
class Launch:
    """Columns and rows at once, warps, programs a multiprocessor."""

    columns: int
    rows: int
    warps: int
    programs_an_sm: int


BACKWARD = Launch(128, 32, 4, 8)  # measured best on an H200 (kernels/README.md)


@triton.jit
def _sum_rows(grad, parts, count, rows_a_program, N: tl.constexpr, H: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    part = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside_head = col % (2 * H)
    source = col // (2 * H) * (3 * H) + tl.where(inside_head < H, inside_head, inside_head + H)  # over the key's columns
    fits = col < N * 2 * H
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    end = tl.minimum((part + 1) * rows_a_program, count)
    for first in range(part * rows_a_program, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & fits[None, :]
        total += tl.load(grad + row[:, None] * (N * 3 * H) + source[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(parts + part * (N * 2 * H) + col, tl.sum(total, axis=0), mask=fits)


def bias_gradient(grad: torch.Tensor, launch: Launch = BACKWARD) -> torch.Tensor:
    """(..., N, 3, H) -> (N, 2, H) in its dtype."""
    heads, _, head_dim = grad.shape[-3:]
    width, count = heads * 2 * head_dim, grad.numel() // (heads * 3 * head_dim)
    blocks = triton.cdiv(width, launch.columns)
    wanted = triton.cdiv(streaming_multiprocessors(grad.device) * launch.programs_an_sm, blocks)
    programs = max(1, min(triton.cdiv(count, launch.rows), wanted))
    rows_a_program = triton.cdiv(triton.cdiv(count, launch.rows), programs) * launch.rows
    parts = torch.empty(programs, width, dtype=torch.float32, device=grad.device)
    _sum_rows[(programs, blocks)](
        grad, parts, count, rows_a_program, heads, head_dim, launch.columns, launch.rows, num_warps=launch.warps
    )  # fmt: skip
    return column_sum(parts, grad.dtype).view(heads, 2, head_dim)


class PackedBiasGradient(torch.autograd.Function):
    """Hands `packed` on; saves nothing."""

    @staticmethod
    def forward(ctx: FunctionCtx, packed: torch.Tensor, bias_N2H: torch.Tensor) -> torch.Tensor:
        return packed.view_as(packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return grad, bias_gradient(grad.contiguous()) if ctx.needs_input_grad[1] else None
