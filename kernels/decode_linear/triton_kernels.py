"""A linear map of few rows in Triton: a program takes some outputs, walks over all inputs once, and ends with the whole epilogue.

The sums of x and x^2 that a norm needs are taken from the tiles of x that the product reads anyway. The walk over K has the same steps
whatever the number of outputs a program has, so that the launch changes no bits. M rows, K inputs, N outputs; offsets are 64-bit.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from uniaudio.kernels.device import streaming_multiprocessors


@dataclass(frozen=True)
class Launch:
    """Outputs of a program, inputs of a step, steps in flight, warps."""

    outputs: int
    depth: int
    stages: int
    warps: int


def default_launch(rows: int, outputs: int, inputs: int, processors: int, dtype: torch.dtype = torch.bfloat16) -> Launch:
    """Enough programs to occupy every multiprocessor, and enough bytes in flight in each: outputs x depth x 2 bytes x (stages - 1).

    Up to 16 rows of many outputs: the fastest of a search on an H200 (1536 -> 4608: 11.3 us where the rule for the others takes 20.9);
    `kernels/benchmarks/decode_cases.py` is the search. A step of float32 is 64 inputs at most: what is added one by one is then 64
    products, and the steps' sums.
    """
    few = 16 if rows > 16 else 8
    width = next((width for width in (64, 32, 16) if outputs // width >= processors), few)
    deepest = 64 if dtype == torch.float32 else 256 if rows <= 16 else 128
    depth = min(deepest, max(16, triton.next_power_of_2(inputs)))
    if rows <= 16 and dtype != torch.float32 and outputs >= 32 * processors:
        return Launch(64, depth, 3, 2)
    return Launch(max(few, width), depth, 4, 4)


@triton.jit
def gelu_of(z, EXACT: tl.constexpr):
    if EXACT:
        result = z * (0.5 + 0.5 * tl.erf(z * 0.7071067811865476))
    else:
        result = z / (1.0 + tl.exp(-tl.maximum(1.5957691216057308 * (z + 0.044715 * z * z * z), -80.0)))
    return result


@triton.jit
def _linear(
    x, weight, bias, scale, norm_sums, residual, out, rows, eps,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    BIAS: tl.constexpr, SCALED: tl.constexpr, NORMED: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    step = tl.arange(0, DEPTH)
    there, fits = row < rows, column < N
    x_tile = x + row[:, None].to(tl.int64) * K + step[None, :]
    weight_tile = weight + column[None, :].to(tl.int64) * K + step[:, None]
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    total, squares = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for begin in tl.range(0, K, DEPTH, num_stages=STAGES):
        inside = begin + step < K
        values = tl.load(x_tile + begin, mask=there[:, None] & inside[None, :], other=0.0)
        weights = tl.load(weight_tile + begin, mask=inside[:, None] & fits[None, :], other=0.0)
        if values.dtype == tl.float32:
            # One chain of additions over K errs with sqrt(K): 3.5e-7 at K = 300 (H200), above what the library's product allows. A chain a
            # step and one of the steps' sums errs with 1.5e-7. An fma, as the compiler folds a plain addition back into the one chain.
            sums = tl.fma(tl.dot(values, weights.to(values.dtype), input_precision="ieee"), 1.0, sums)
        else:
            sums = tl.dot(values, weights.to(values.dtype), sums, input_precision="ieee")
        if NORMED:
            wide = values.to(tl.float32)
            total += tl.sum(wide, axis=1)
            squares += tl.sum(wide * wide, axis=1)
    if SCALED:
        sums *= tl.load(scale + column, mask=fits, other=0.0)[None, :]
    if NORMED:
        mean = total / K
        spread = tl.rsqrt(tl.maximum(squares / K - mean * mean, 0.0) + eps)
        sums = (sums - mean[:, None] * tl.load(norm_sums + column, mask=fits, other=0.0)[None, :]) * spread[:, None]
    if BIAS:
        sums += tl.load(bias + column, mask=fits, other=0.0)[None, :]
    if GELU != "none":
        sums = gelu_of(sums, GELU == "exact")
    place = row[:, None].to(tl.int64) * N + column[None, :]
    written = there[:, None] & fits[None, :]
    if RESIDUAL:
        sums += tl.load(residual + place, mask=written, other=0.0).to(tl.float32)
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=written)


class Operands(NamedTuple):
    """What `interface.decode_linear` takes, checked."""

    x_MK: torch.Tensor
    weight_NK: torch.Tensor
    bias_N: torch.Tensor | None
    scale_N: torch.Tensor | None
    norm_sums_N: torch.Tensor | None
    eps: float
    gelu: str | None
    residual_MN: torch.Tensor | None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """M, N, K."""
        return self.x_MK.shape[0], *self.weight_NK.shape

    def arguments(self) -> tuple[torch.Tensor, tuple[object, ...]]:
        """The result's memory (M, N), and a kernel's first arguments, `x` to `eps`."""
        rows, outputs, _ = self.sizes
        out = torch.empty(rows, outputs, dtype=self.x_MK.dtype, device=self.x_MK.device)
        vectors = (self.bias_N, self.scale_N, self.norm_sums_N)
        return out, (self.x_MK, self.weight_NK, *vectors, self.residual_MN, out, rows, self.eps)

    @property
    def parts(self) -> tuple[bool, bool, bool, str, bool]:
        """A kernel's BIAS, SCALED, NORMED, GELU and RESIDUAL."""
        given = (self.bias_N is not None, self.scale_N is not None, self.norm_sums_N is not None)
        return *given, self.gelu or "none", self.residual_MN is not None


def decode_linear(given: Operands, launch: Launch | None = None) -> torch.Tensor:
    """(M, N) in one launch; `launch` overrides the choice (tuning)."""
    rows, outputs, inputs = given.sizes
    launch = launch or default_launch(rows, outputs, inputs, streaming_multiprocessors(given.x_MK.device), given.x_MK.dtype)
    out, arguments = given.arguments()
    _linear[(triton.cdiv(outputs, launch.outputs),)](
        *arguments, outputs, inputs, max(16, triton.next_power_of_2(rows)), launch.outputs, launch.depth, launch.stages,
        *given.parts, num_warps=launch.warps,
    )  # fmt: skip
    return out
