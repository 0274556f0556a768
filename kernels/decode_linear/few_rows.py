"""A linear map of up to 16 rows: all weights of a program are on their way before anything is computed, and rows follow one another.

A program takes few outputs and holds their weights over all inputs in registers; a warp's lanes lie side by side along K, so that a load is
512 contiguous bytes a warp, and the products, in float32, need no exchange before the last sum. What the norm needs of a row comes from
the same values. A row's sums are the same whatever rows are beside it.
Launched early (programmatic dependent launch), the weights come while the launch before this one ends. M rows, K inputs, N outputs.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from uniaudio.kernels.decode_linear.triton_kernels import Operands, gelu_of
from uniaudio.kernels.early import end_of_the_launch_before

ROWS = 16  # the most


@dataclass(frozen=True)
class FewRows:
    """Outputs of a program, its warps, which share K, and the rows that it takes at once."""

    outputs: int
    warps: int
    group: int


def few_rows_launch(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> FewRows | None:
    """The launch of these sizes, None where this kernel is not for them: too many rows, or more inputs than registers hold.

    The fastest of a search on an H200 at 1 and 16 rows (kernels/README.md).
    """
    if rows > ROWS or inputs * dtype.itemsize > 16_384:
        return None
    warps = 4 if inputs * dtype.itemsize > 4096 else 1  # the same for all rows: it is the order of the sums
    if rows == 1:
        return FewRows(1 if warps == 4 else 4, warps, 1)
    return FewRows(4 if warps == 1 and outputs <= 3072 else 2, warps, 4)


@triton.jit
def _parts(values, VECTOR: tl.constexpr):
    """(O, D) -> (O, D / VECTOR): sums of the neighbours that a lane holds, so that nothing crosses lanes."""
    return tl.sum(tl.reshape(values, (values.shape[0], values.shape[1] // VECTOR, VECTOR)), axis=2)


@triton.jit
def _few_rows(
    x, weight, bias, scale, norm_sums, residual, out, rows, eps,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, VECTOR: tl.constexpr,
    BIAS: tl.constexpr, SCALED: tl.constexpr, NORMED: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    STEPS: tl.constexpr = (K + DEPTH - 1) // DEPTH
    column = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    fits = column < N
    step = tl.max_contiguous(tl.arange(0, DEPTH), VECTOR)[None, :]
    tile = weight + column[:, None].to(tl.int64) * K + step
    weights = ()
    for s in tl.static_range(STEPS):
        if K % DEPTH == 0 and N % OUTPUTS == 0:
            weights += (tl.load(tile + s * DEPTH, eviction_policy="evict_first"),)
        else:
            weights += (tl.load(tile + s * DEPTH, mask=fits[:, None] & (s * DEPTH + step < K), other=0, eviction_policy="evict_first"),)
    shift = tl.load(bias + column, mask=fits, other=0.0) if BIAS else 0.0
    times = tl.load(scale + column, mask=fits, other=0.0) if SCALED else 1.0
    means = tl.load(norm_sums + column, mask=fits, other=0.0) if NORMED else 0.0
    if EARLY:
        end_of_the_launch_before()
    else:
        tl.debug_barrier()  # or the compiler lets the loads wait for one another to save registers
    for first in range(0, rows, GROUP):
        sums, totals, squares = (), (), ()
        for _ in tl.static_range(GROUP):
            sums += (tl.zeros((OUTPUTS, DEPTH // VECTOR), tl.float32),)
            totals += (tl.zeros((1, DEPTH // VECTOR), tl.float32),)
            squares += (tl.zeros((1, DEPTH // VECTOR), tl.float32),)
        for s in tl.static_range(STEPS):
            held = weights[s].to(tl.float32)
            new_sums, new_totals, new_squares = (), (), ()
            for g in tl.static_range(GROUP):
                row = tl.minimum(first + g, rows - 1)  # what is beyond is computed, and written, as the last row again
                place = x + row.to(tl.int64) * K + s * DEPTH + step
                if K % DEPTH == 0:
                    values = tl.load(place).to(tl.float32)
                else:
                    values = tl.load(place, mask=s * DEPTH + step < K, other=0.0).to(tl.float32)
                new_sums += (sums[g] + _parts(held * values, VECTOR),)
                new_totals += ((totals[g] + _parts(values, VECTOR)) if NORMED else totals[g],)
                new_squares += ((squares[g] + _parts(values * values, VECTOR)) if NORMED else squares[g],)
            sums, totals, squares = new_sums, new_totals, new_squares
        for g in tl.static_range(GROUP):
            row = tl.minimum(first + g, rows - 1)
            result = tl.sum(sums[g], axis=1)
            if SCALED:
                result *= times
            if NORMED:
                mean = tl.sum(totals[g], axis=1) / K
                spread = tl.rsqrt(tl.maximum(tl.sum(squares[g], axis=1) / K - mean * mean, 0.0) + eps)
                result = (result - mean * means) * spread
            result += shift
            if GELU != "none":
                result = gelu_of(result, GELU == "exact")
            spot = row.to(tl.int64) * N + column
            if RESIDUAL:
                result += tl.load(residual + spot, mask=fits, other=0.0).to(tl.float32)
            tl.store(out + spot, result.to(out.dtype.element_ty), mask=fits)


def few_rows(given: Operands, launch: FewRows, early: bool) -> torch.Tensor:
    """(M, N) in one launch."""
    rows, outputs, inputs = given.sizes
    vector = 16 // given.x_MK.element_size()
    depth = min(32 * vector * launch.warps, max(vector, triton.next_power_of_2(inputs)))
    out, arguments = given.arguments()
    _few_rows[(triton.cdiv(outputs, launch.outputs),)](
        *arguments, outputs, inputs, min(launch.group, triton.next_power_of_2(rows)), launch.outputs, depth, vector,
        *given.parts, early, num_warps=launch.warps, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return out
