"""float32 to numbers of 8 bits (e4m3), inside kernels."""

# ruff: noqa: ANN001, ANN201 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

import triton
import triton.language as tl


@triton.jit
def to_fp8(values, BY_HAND: tl.constexpr):
    """float32 of at most 448 -> e4m3, to the nearest, ties to even; NaN stays NaN.

    BY_HAND: the interpreter's own cast does not round. This gives the bits of the card's.
    """
    if BY_HAND:
        bits = values.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # three of the 23 bits behind the point stay
        small = (values + 24576.0) - 24576.0  # below 2^-6 the step is 2^-9, that of float32 at 1.5 x 2^14
        values = tl.where(tl.abs(values) < 0.015625, small, bits.to(tl.float32, bitcast=True))
    return values.to(tl.float8e4nv)
