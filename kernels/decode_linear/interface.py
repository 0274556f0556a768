"""decode_linear: a linear map of few rows with everything around it in one pass: norm, bias, GELU, residual, int8 weights.

M rows, K inputs, N outputs. Generation reads all weights for a handful of rows, so the weights' bytes are the time; each byte moves once
and nothing else is launched. Owns the checks and the choice of path; no gradient.
"""

from typing import Literal

import torch

from uniaudio.kernels.checks import FLOAT_DTYPES, Backend, check_backend, check_contiguous, check_device, check_float, check_shape, fault
from uniaudio.kernels.decode_linear import reference

OP = "decode_linear"
MAX_KERNEL_ROWS = 64


def decode_linear(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    *,
    scale_N: torch.Tensor | None = None,
    norm_sums_N: torch.Tensor | None = None,
    eps: float = 1e-5,
    gelu: Literal["exact", "tanh"] | None = None,
    residual_MN: torch.Tensor | None = None,
    early: bool = False,
    backend: Backend,
) -> torch.Tensor:
    """gelu(norm(x) W^T + bias) + residual, (M, N) in x's dtype; each part where it is given.

    weight_NK: x's dtype, or int8 with scale_N (row n counts scale_N[n] times its integers). norm_sums_N: the row sums of the (scaled)
    weight; where given, x is normed first, (x - mean) / sqrt(var + eps), which takes no pass of its own: it is
    (x W^T - mean norm_sums) / sqrt(var + eps). A norm's gain and shift belong in the weight and the bias (`fold_norm`).
    bias_N, scale_N, norm_sums_N: float32 (float64 beside float64). Raises ValueError on any other input.

    Backend triton: its kernels up to 64 rows, the library's product beyond. Up to 16 rows, a row's result does not depend on the others.
    early: a GPU may load the weights while the launch before this one still runs (`kernels.early`): they are long written.
    """
    check_shape(OP, "x_MK", x_MK, (None, None))
    check_shape(OP, "weight_NK", weight_NK, (None, x_MK.shape[1]))
    check_backend(OP, backend, x_MK)
    outputs = weight_NK.shape[0]
    if weight_NK.dtype == torch.int8:
        if scale_N is None:
            raise fault(OP, "scale_N", seen=None, allowed="a scale for each row of int8 weights")
        check_float(OP, backend, x_MK=x_MK, residual_MN=residual_MN)
    else:
        if scale_N is not None:
            raise fault(OP, "scale_N beside weights of", seen=weight_NK.dtype, allowed="int8")
        check_float(OP, backend, x_MK=x_MK, weight_NK=weight_NK, residual_MN=residual_MN)
    wide = torch.promote_types(x_MK.dtype, torch.float32)
    for name, vector in (("bias_N", bias_N), ("scale_N", scale_N), ("norm_sums_N", norm_sums_N)):
        if vector is not None:
            check_shape(OP, name, vector, (outputs,))
            if vector.dtype != wide:
                raise fault(OP, f"dtype of {name}", seen=vector.dtype, allowed=wide)
    if gelu not in (None, "exact", "tanh"):
        raise fault(OP, "gelu", seen=gelu, allowed="None, exact, tanh")
    if residual_MN is not None:
        check_shape(OP, "residual_MN", residual_MN, (x_MK.shape[0], outputs))
    vectors = {"bias_N": bias_N, "scale_N": scale_N, "norm_sums_N": norm_sums_N}
    check_device(OP, x_MK=x_MK, weight_NK=weight_NK, residual_MN=residual_MN, **vectors)
    check_contiguous(OP, x_MK=x_MK, weight_NK=weight_NK, residual_MN=residual_MN, **vectors)
    if backend == "torch" or x_MK.shape[0] > MAX_KERNEL_ROWS:
        return reference.decode_linear(x_MK, weight_NK, bias_N, scale_N, norm_sums_N is not None, eps, gelu, residual_MN)
    from uniaudio.kernels.decode_linear import few_rows, triton_kernels  # here: the torch path works without Triton
    from uniaudio.kernels.early import starts_early

    if x_MK.shape[0] * outputs == 0:
        return x_MK.new_empty(x_MK.shape[0], outputs)
    given = triton_kernels.Operands(x_MK, weight_NK, bias_N, scale_N, norm_sums_N, eps, gelu, residual_MN)
    few = few_rows.few_rows_launch(x_MK.shape[0], outputs, x_MK.shape[1], x_MK.dtype)
    if few is not None:
        return few_rows.few_rows(given, few, early and starts_early(x_MK.device))
    return triton_kernels.decode_linear(given)


def fold_norm(
    weight_NK: torch.Tensor, bias_N: torch.Tensor | None, gain_K: torch.Tensor, shift_K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight, bias) of a linear map behind a norm, with the norm's gain and shift in them; float32 (float64 of float64)."""
    wide = torch.promote_types(weight_NK.dtype, torch.float32)
    weight = weight_NK.to(wide)
    bias = weight @ shift_K.to(wide)
    return weight * gain_K.to(wide), bias if bias_N is None else bias + bias_N.to(wide)


def quantize_rows(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 (N, K), float32 scale (N,)): each row to the nearest of -127..127 times its largest magnitude / 127."""
    if weight_NK.dtype not in (*FLOAT_DTYPES, torch.float64):
        raise fault(OP, "dtype of weights to quantize", seen=weight_NK.dtype, allowed="a floating one")
    weight = weight_NK.to(torch.float32)
    scale_N = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
    return (weight / scale_N[:, None]).round().to(torch.int8), scale_N
