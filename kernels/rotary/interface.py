"""rotary: queries and keys of the packed projection turned by their frame's position (Su et al. 2021, RoFormer, eq. 34).

A query's product with a key then depends on the difference of their positions alone. Owns the checks and the choice of path. X rows,
N heads, H head width; the pairs that turn together are (i, i + H/2), by position * BASE^(-2i / H).
"""

import torch

from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_device, check_float, check_integer, check_shape, fault
from uniaudio.kernels.rotary import reference

OP = "rotate"
INTEGERS = (torch.int32, torch.int64)


def rotate(packed_XN3H: torch.Tensor, positions_X: torch.Tensor, *, backend: Backend) -> torch.Tensor:
    """Query and key turned, the value as it is, (X, N, 3, H). positions_X: int32 or int64, of any size and order.

    Differentiable in `packed_XN3H`. Angles and products are float32 (float64 for float64 on the torch path). Raises ValueError on wrong
    dtype, device, shape or stride, and on a head of odd width.
    """
    check_backend(OP, backend, packed_XN3H)
    check_float(OP, backend, packed_XN3H=packed_XN3H)
    check_integer(OP, INTEGERS, positions_X=positions_X)
    check_device(OP, packed_XN3H=packed_XN3H, positions_X=positions_X)
    if packed_XN3H.dim() != 4 or packed_XN3H.shape[2] != 3 or packed_XN3H.shape[3] % 2 or not packed_XN3H.shape[3]:
        raise fault(OP, "shape of packed_XN3H", seen=tuple(packed_XN3H.shape), allowed="(X, N, 3, H) with an even H")
    check_shape(OP, "positions_X", positions_X, (packed_XN3H.shape[0],))
    check_contiguous(OP, packed_XN3H=packed_XN3H, positions_X=positions_X)
    if backend == "torch":
        return reference.rotate(packed_XN3H, positions_X)
    from uniaudio.kernels.rotary.triton_kernels import Rotate  # here: the torch path works without Triton

    return Rotate.apply(packed_XN3H, positions_X)
