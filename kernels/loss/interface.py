"""linear_cross_entropy: the output projection and the cross-entropy of the target codes, logits a chunk at a time.

X codes, D width, V rows of the (padded) vocabulary on this rank. Owns the checks and the choice of path.
"""

import torch
import torch.distributed as dist

from uniaudio.kernels.checks import (
    Backend,
    check_backend,
    check_contiguous,
    check_device,
    check_float,
    check_integer,
    check_shape,
    fault,
)
from uniaudio.kernels.loss import reference

OP = "linear_cross_entropy"


def linear_cross_entropy(
    hidden_XD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_X: torch.Tensor,
    mask_X: torch.Tensor,
    *,
    num_valid: int,
    backend: Backend,
    group: dist.ProcessGroup | None = None,
    count: int | None = None,
) -> torch.Tensor:
    """-log softmax(hidden . weight^T)[target] of each code that the mask counts, (X,) float32; 0 where it does not.

    hidden_XD (X, D), weight_VD (V, D) of one float dtype; targets_X (X,) int64 in [0, num_valid) wherever mask_X (X,), integer or bool,
    is not 0. Rows num_valid.. of the vocabulary are padding and never count. With a `group`, weight_VD is this rank's V rows, in rank
    order; every rank holds the same hidden states and gets the same losses, and the gradient of hidden_XD is summed over the group.
    `count`: how many codes the mask counts, from whoever made it; else the host waits for the device to know.
    Differentiable in hidden_XD and weight_VD; for that up to 1 GiB of logits stay on the Triton path until the backward pass. Raises
    ValueError on any other input.
    """
    check_shape(OP, "hidden_XD", hidden_XD, (None, None))
    check_shape(OP, "weight_VD", weight_VD, (None, hidden_XD.shape[1]))
    check_shape(OP, "targets_X", targets_X, (hidden_XD.shape[0],))
    check_shape(OP, "mask_X", mask_X, (hidden_XD.shape[0],))
    check_backend(OP, backend, hidden_XD)
    check_float(OP, backend, hidden_XD=hidden_XD, weight_VD=weight_VD)
    check_integer(OP, (torch.int64,), targets_X=targets_X)
    check_integer(OP, (torch.bool, torch.int8, torch.uint8, torch.int32, torch.int64), mask_X=mask_X)
    check_device(OP, hidden_XD=hidden_XD, weight_VD=weight_VD, targets_X=targets_X, mask_X=mask_X)
    check_contiguous(OP, hidden_XD=hidden_XD, weight_VD=weight_VD)
    rows = weight_VD.shape[0] * (dist.get_world_size(group) if group is not None else 1)
    if not 1 <= num_valid <= rows:
        raise fault(OP, "num_valid", seen=num_valid, allowed=f"1 to {rows}, the rows of the vocabulary")
    if backend == "torch":
        return reference.linear_cross_entropy(hidden_XD, weight_VD, targets_X, mask_X, num_valid, group, count)
    from uniaudio.kernels.loss.triton_kernels import LinearCrossEntropy  # here: the torch path works without Triton

    keep = torch.is_grad_enabled() and (hidden_XD.requires_grad or weight_VD.requires_grad)
    return LinearCrossEntropy.apply(hidden_XD, weight_VD, targets_X, mask_X, num_valid, group, count, keep)
