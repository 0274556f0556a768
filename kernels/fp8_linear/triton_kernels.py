"""Rows in 8 bits, in one pass: the largest value of a row, and its values over it. One program a row."""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

import torch
import triton
import triton.language as tl

from uniaudio.kernels.fp8_linear.reference import FP8, LARGEST, LEAST_SCALE


@triton.jit
def _round(values):
    """To the nearest that e4m3 holds, ties to even: the cast after it is exact, so the card and the interpreter give the same bits."""
    bits = values.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # three of the 23 bits behind the point stay
    small = (values + 24576.0) - 24576.0  # below 2^-6 the step is 2^-9, that of float32 at 1.5 x 2^14
    return tl.where(tl.abs(values) < 0.015625, small, bits.to(tl.float32, bitcast=True))


@triton.jit
def _quantize_rows(x, quantized, scales, LARGEST: tl.constexpr, LEAST: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    values = tl.load(x + row * K + cols, mask=cols < K, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), axis=0) / LARGEST, LEAST)
    rounded = _round(tl.minimum(tl.maximum(values / scale, -LARGEST), LARGEST))
    tl.store(quantized + row * K + cols, rounded.to(quantized.dtype.element_ty), mask=cols < K)
    tl.store(scales + row, scale)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (R, K) contiguous -> (e4m3 (R, K), float32 scales (R, 1))."""
    rows, K = x.shape
    quantized = torch.empty(x.shape, dtype=FP8, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    width = triton.next_power_of_2(K)
    _quantize_rows[(rows,)](x, quantized, scales, LARGEST, LEAST_SCALE, K, width, num_warps=max(1, min(8, width // 512)))
    return quantized, scales
