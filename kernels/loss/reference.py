"""Output projection + cross-entropy in plain PyTorch, a chunk of codes at a time, over one process or a vocabulary-parallel group.

Each chunk's logits are dropped after use and computed again in the backward pass, so they never exist for all codes at once.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from uniaudio.kernels.loss.places import counted_places

CODES_A_CHUNK = 4_096


class _CopyToGroup(torch.autograd.Function):
    """Identity whose gradient is summed over the group: every rank holds the input, each sees its part of the vocabulary."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _SumOverGroup(torch.autograd.Function):
    """Sum over the group, whose gradient is the identity: every rank holds the same sum and the same gradient of it."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


def _parallel_losses(logits_CV: torch.Tensor, targets_C: torch.Tensor, first: int, group: dist.ProcessGroup) -> torch.Tensor:
    highest_C = logits_CV.detach().amax(dim=1)
    dist.all_reduce(highest_C, op=dist.ReduceOp.MAX, group=group)
    shifted_CV = logits_CV - highest_C[:, None]
    sums_C = _SumOverGroup.apply(shifted_CV.exp().sum(dim=1), group)
    local_C = targets_C - first
    here_C = (local_C >= 0) & (local_C < logits_CV.shape[1])
    picked_C = shifted_CV.gather(1, local_C.clamp(0, logits_CV.shape[1] - 1)[:, None])[:, 0]
    picked_C = _SumOverGroup.apply(torch.where(here_C, picked_C, 0.0), group)
    return sums_C.log() - picked_C


def _chunk_losses(
    hidden_CD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_C: torch.Tensor,
    num_valid: int,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    wide = torch.promote_types(hidden_CD.dtype, torch.float32)
    first = weight_VD.shape[0] * dist.get_rank(group) if group is not None else 0
    logits_CV = F.linear(hidden_CD, weight_VD).to(wide)
    local_valid = min(max(num_valid - first, 0), weight_VD.shape[0])
    padding_V = torch.arange(weight_VD.shape[0], device=weight_VD.device) >= local_valid
    logits_CV = logits_CV.masked_fill(padding_V, float("-inf"))
    if group is None:
        return F.cross_entropy(logits_CV, targets_C, reduction="none")
    return _parallel_losses(logits_CV, targets_C, first, group)


def linear_cross_entropy(
    hidden_XD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_X: torch.Tensor,
    mask_X: torch.Tensor,
    num_valid: int,
    group: dist.ProcessGroup | None,
    count: int | None = None,
) -> torch.Tensor:
    """Losses (X,) in float32 (float64 for float64 input); 0, and no gradient, where the mask is 0."""
    if group is not None:
        hidden_XD = _CopyToGroup.apply(hidden_XD, group)
    counted_C = counted_places(mask_X, count)
    losses_X = hidden_XD.new_zeros(hidden_XD.shape[0], dtype=torch.promote_types(hidden_XD.dtype, torch.float32))
    parts = [
        checkpoint(_chunk_losses, hidden_XD[rows], weight_VD, targets_X[rows], num_valid, group, use_reentrant=False)
        for rows in counted_C.split(CODES_A_CHUNK)
        if rows.numel()
    ]
    if not parts:
        return losses_X + 0.0 * (hidden_XD.sum() + weight_VD.sum())
    return losses_X.index_copy(0, counted_C, torch.cat(parts))
