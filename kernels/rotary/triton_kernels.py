"""rotary in Triton: one pass over the packed projection; the gradient is the same pass with the angles turned back.

X rows, N heads, H head width. A program turns one head of ROWS rows, so that the angles of a row are computed once for query and key.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

from uniaudio.kernels.rotary.reference import turns


@dataclass(frozen=True)
class Launch:
    """Rows a program, warps."""

    rows: int
    warps: int


LAUNCH = Launch(16, 4)


@triton.jit
def _turn(packed, positions, turns, out, count, SIGN: tl.constexpr, N: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    pair = tl.arange(0, P)
    inside = (row < count)[:, None] & (pair < H // 2)[None, :]
    position = tl.load(positions + row, mask=row < count, other=0).to(tl.float32)
    angle = position[:, None] * tl.load(turns + pair, mask=pair < H // 2, other=0.0)[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle) * SIGN
    first = row[:, None] * (N * 3 * H) + tl.program_id(1) * (3 * H) + pair[None, :]
    for part in tl.static_range(3):
        low = tl.load(packed + first + part * H, mask=inside, other=0.0)
        high = tl.load(packed + first + part * H + H // 2, mask=inside, other=0.0)
        if part < 2:
            wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
            low = (wide_low * cos - wide_high * sin).to(out.dtype.element_ty)
            high = (wide_high * cos + wide_low * sin).to(out.dtype.element_ty)
        tl.store(out + first + part * H, low, mask=inside)
        tl.store(out + first + part * H + H // 2, high, mask=inside)


def turned(packed_XN3H: torch.Tensor, positions_X: torch.Tensor, *, back: bool = False, launch: Launch = LAUNCH) -> torch.Tensor:
    """The packed projection with query and key turned, or turned back, in a tensor of its own."""
    count, heads, _, width = packed_XN3H.shape
    out = torch.empty_like(packed_XN3H)
    if count:
        _turn[(triton.cdiv(count, launch.rows), heads)](
            packed_XN3H, positions_X, turns(width, packed_XN3H.device, torch.float32), out, count, -1.0 if back else 1.0, heads, width,
            launch.rows, triton.next_power_of_2(width // 2), num_warps=launch.warps,
        )  # fmt: skip
    return out


class Rotate(torch.autograd.Function):
    """Keeps the positions alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, packed_XN3H: torch.Tensor, positions_X: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(positions_X)
        return turned(packed_XN3H, positions_X)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (positions_X,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return turned(grad.contiguous(), positions_X, back=True), None
