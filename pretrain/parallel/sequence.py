"""Sequence parallelism: between the tensor-parallel products each rank of the group holds its part of the tokens only.

Norms, residuals and biases are then computed once instead of on every rank, and an all-reduce becomes a reduce-scatter before them and an
all-gather behind. Tokens are the first dimension; rank r has the r-th of as many equal parts as there are ranks.

megatron-core has the same inside its linear layers, but only on CUDA; these run on gloo too, so that the layout is tested without GPUs.
"""

import torch
import torch.distributed as dist
from torch.autograd.function import FunctionCtx, once_differentiable


def _gather(x: torch.Tensor, group: dist.ProcessGroup, *, wait: bool = True) -> tuple[torch.Tensor, dist.Work | None]:
    whole = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    return whole, dist.all_gather_into_tensor(whole, x.contiguous(), group=group, async_op=not wait)


def _scatter_sum(x: torch.Tensor, group: dist.ProcessGroup, *, wait: bool = True) -> tuple[torch.Tensor, dist.Work | None]:
    part = x.new_empty(x.shape[0] // dist.get_world_size(group), *x.shape[1:])
    return part, dist.reduce_scatter_tensor(part, x.contiguous(), group=group, async_op=not wait)


def _own(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    return x.chunk(dist.get_world_size(group))[dist.get_rank(group)].contiguous()


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        return _own(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _gather(grad, ctx.group)[0], None  # type: ignore[attr-defined]


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        return _gather(x, group)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _own(grad, ctx.group), None  # type: ignore[attr-defined]


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, parameter: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        return parameter.view_as(parameter)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)  # type: ignore[attr-defined]
        return total, None


class _GatheredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group = group  # type: ignore[attr-defined]
        return _gather(x, group)[0] @ weight.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        group = ctx.group  # type: ignore[attr-defined]
        whole, gathering = _gather(x, group, wait=False)
        grad_whole = grad @ weight
        if gathering is not None:
            gathering.wait()
        grad_x, scattering = _scatter_sum(grad_whole, group, wait=False)
        grad_weight = grad.flatten(0, -2).t() @ whole.flatten(0, -2)
        if scattering is not None:
            scattering.wait()
        return grad_x, grad_weight, None


class _ScatteredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group = group  # type: ignore[attr-defined]
        return _scatter_sum(x @ weight.t(), group)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        whole = _gather(grad, ctx.group)[0]  # type: ignore[attr-defined]
        return whole @ weight, whole.flatten(0, -2).t() @ x.flatten(0, -2), None


def cut(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Whole tokens (X, ...), equal on all ranks -> this rank's (X / size, ...); the gradient is whole again."""
    return _Cut.apply(x, group)


def whole(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The inverse of `cut`; the gradient that comes back must be whole, and equal on all ranks."""
    return _Whole.apply(x, group)


def summed(parameter: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """A parameter that every rank applies to its own tokens: its gradients are added up."""
    return _Summed.apply(parameter, group)


def gathered_linear(x: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Own tokens (X / size, ..., input) -> all tokens of this rank's outputs (X, ..., output / size).

    Keeps the own tokens only and gathers again in the backward pass, beside the product that does not need them.
    """
    return _GatheredLinear.apply(x, weight, group)


def scattered_linear(x: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """All tokens of this rank's inputs (X, ..., input / size) -> own tokens (X / size, ..., output), summed over the ranks."""
    return _ScatteredLinear.apply(x, weight, group)
