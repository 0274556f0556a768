"""activation: bias + GELU and SwiGLU, with gradients recomputed from the inputs instead of stored intermediates.

Owns the checks and the choice of path. `x` is (..., F) contiguous, bias (F,), of one dtype.
"""

from typing import Literal

import torch

from uniaudio.kernels.activation import reference
from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_device, check_float, check_shape, fault


def bias_gelu(x: torch.Tensor, bias: torch.Tensor, *, approximate: Literal["exact", "tanh"], backend: Backend) -> torch.Tensor:
    """gelu(x + bias), x (..., F), bias (F,). Raises ValueError on wrong dtype, device, shape, stride or form of GELU."""
    check_backend("bias_gelu", backend, x)
    if approximate not in reference.GELU_NAME:
        raise fault("bias_gelu", "approximate", seen=approximate, allowed=", ".join(reference.GELU_NAME))
    check_float("bias_gelu", backend, x=x, bias=bias)
    check_device("bias_gelu", x=x, bias=bias)
    if x.dim() == 0 or x.shape[-1] < 1:
        raise fault("bias_gelu", "shape of x", seen=tuple(x.shape), allowed="(..., F) with F of 1 or more")
    check_shape("bias_gelu", "bias", bias, (x.shape[-1],))
    check_contiguous("bias_gelu", x=x, bias=bias)
    if backend == "torch":
        return reference.bias_gelu(x, bias, approximate)
    from uniaudio.kernels.activation.triton_kernels import BiasGelu  # here: the torch path works without Triton

    return BiasGelu.apply(x, bias, approximate == "exact")


def swiglu(gate_up: torch.Tensor, *, backend: Backend) -> torch.Tensor:
    """silu(gate) * up of the packed projection (..., 2F) = gate, then up; returns (..., F)."""
    check_backend("swiglu", backend, gate_up)
    check_float("swiglu", backend, gate_up=gate_up)
    if gate_up.dim() == 0 or gate_up.shape[-1] < 2 or gate_up.shape[-1] % 2:
        raise fault("swiglu", "shape of gate_up", seen=tuple(gate_up.shape), allowed="(..., 2F)")
    check_contiguous("swiglu", gate_up=gate_up)
    if backend == "torch":
        return reference.swiglu(gate_up)
    from uniaudio.kernels.activation.triton_kernels import SwiGlu

    return SwiGlu.apply(gate_up)
