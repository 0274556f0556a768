"""packed_bias: the gradient of the query's and value's bias, from the gradient of the packed projection.

A linear map's own gradient of its bias sums all of (X, N, 3, H), the keys too, and then takes the expansion by the key's zeros apart again.
Owns the checks and the choice of path. X rows, N heads, H head width.
"""

import torch

from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_device, check_float, check_shape, fault
from uniaudio.kernels.packed_bias import reference

OP = "packed_bias_gradient"


def packed_bias_gradient(packed: torch.Tensor, bias_N2H: torch.Tensor, *, backend: Backend) -> torch.Tensor:
    """`packed` (..., N, 3, H) as it is; `bias_N2H`, of query and value, is in it already (added detached) and gets its gradient here.

    The sums over rows are float32 and deterministic. Raises ValueError on wrong dtype, device, shape or stride.
    """
    check_backend(OP, backend, packed)
    check_float(OP, backend, packed=packed, bias_N2H=bias_N2H)
    check_device(OP, packed=packed, bias_N2H=bias_N2H)
    if packed.dim() < 4 or packed.shape[-2] != 3:
        raise fault(OP, "shape of packed", seen=tuple(packed.shape), allowed="(..., N, 3, H)")
    check_shape(OP, "bias_N2H", bias_N2H, (packed.shape[-3], 2, packed.shape[-1]))
    check_contiguous(OP, packed=packed, bias_N2H=bias_N2H)
    if backend == "torch":
        return reference.packed_bias_gradient(packed, bias_N2H)
    from uniaudio.kernels.packed_bias.triton_kernels import PackedBiasGradient  # here: the torch path works without Triton

    return PackedBiasGradient.apply(packed, bias_N2H)
