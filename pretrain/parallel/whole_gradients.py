"""Gradients of the parameters that every tensor-parallel rank has whole: sums over a rank's own tokens, added up over the group here.

Where the step is this project's (ZeRO-0, and ZeRO-1 in bf16) that is one flat reduction a step; where DeepSpeed takes the gradients as they
come (the other stages), one a parameter and micro-batch. Between nodes each tensor-parallel rank carries its share of them only: S
data-parallel and T tensor-parallel ranks; the groups are those of this rank.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


def sum_once(gradients: list[torch.Tensor], group: dist.ProcessGroup) -> None:
    """All of them, of one dtype, in place, by one reduction."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients)])


def sum_in_backward(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Each gradient before anything else reads it; ranks run the same operations, so they come in the same order."""

    def total(grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        dist.all_reduce(grad, group=group)
        return grad

    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_hook(total)


def _strips(flat: torch.Tensor, data_size: int, tensor_size: int) -> torch.Tensor:
    """(S x share,) -> (T, S x strip): the t-th strip of every data-parallel rank's share, the last ones filled up with zeros."""
    shares = flat.view(data_size, -1)
    strip = -(-shares.shape[1] // tensor_size)
    filled = F.pad(shares, (0, strip * tensor_size - shares.shape[1]))
    return filled.view(data_size, tensor_size, strip).transpose(0, 1).flatten(1)


def reduce_scatter(total: torch.Tensor, data_group: dist.ProcessGroup, tensor_group: dist.ProcessGroup) -> torch.Tensor:
    """(N,) gradients, N a multiple of S -> this data-parallel rank's share (N / S,) of their sum over both groups."""
    data_size, tensor_size = dist.get_world_size(data_group), dist.get_world_size(tensor_group)
    strips = _strips(total, data_size, tensor_size)
    mine = torch.empty_like(strips[0])
    dist.reduce_scatter_tensor(mine, strips.flatten(), group=tensor_group)
    part = mine.new_empty(len(mine) // data_size)
    dist.reduce_scatter_tensor(part, mine, group=data_group)
    share = part.new_empty(tensor_size * len(part))
    dist.all_gather_into_tensor(share, part, group=tensor_group)
    return share[: total.numel() // data_size]


def all_gather(flat: torch.Tensor, share: slice, data_group: dist.ProcessGroup, tensor_group: dist.ProcessGroup) -> None:
    """Fills `flat` (N,) from the share (N / S,) of each data-parallel rank; the tensor-parallel ranks hold the same shares."""
    data_size, tensor_size = dist.get_world_size(data_group), dist.get_world_size(tensor_group)
    own = _strips(flat[share], 1, tensor_size)[dist.get_rank(tensor_group)]
    mine = own.new_empty(data_size * len(own))
    dist.all_gather_into_tensor(mine, own, group=data_group)
    strips = own.new_empty(tensor_size * len(mine))
    dist.all_gather_into_tensor(strips, mine, group=tensor_group)
    shares = strips.view(tensor_size, data_size, -1).transpose(0, 1).flatten(1)
    flat.view(data_size, -1).copy_(shares[:, : share.stop - share.start])
