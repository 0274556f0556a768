"""decode_linear in plain PyTorch: backend "torch", more rows than the kernel takes, and in float64 the truth of the tests."""

import torch
import torch.nn.functional as F

GELU_NAME = {"exact": "none", "tanh": "tanh"}


def decode_linear(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    scale_N: torch.Tensor | None,
    normed: bool,
    eps: float,
    gelu: str | None,
    residual_MN: torch.Tensor | None,
) -> torch.Tensor:
    """gelu(norm(x) W^T + bias) + residual, (M, N) in x's dtype."""
    dtype = x_MK.dtype
    x = F.layer_norm(x_MK, x_MK.shape[1:], eps=eps) if normed else x_MK
    bias = bias_N.to(dtype) if bias_N is not None else None
    if scale_N is None:
        out = F.linear(x, weight_NK, bias)
    else:
        out = F.linear(x, weight_NK.to(dtype)) * scale_N.to(dtype)  # integers up to 127 are exact in every floating dtype
        out = out if bias is None else out + bias
    if gelu is not None:
        out = F.gelu(out, approximate=GELU_NAME[gelu])
    return out if residual_MN is None else out + residual_MN
