"""The products of tensor parallelism with the tokens cut over the group: what crosses ranks travels beside a product that does not need it.

Between the products each rank of the group holds its part of the tokens only (the r-th of as many equal parts as there are ranks), so that
norms and residuals are computed once. A product whose outputs are cut needs all tokens: it begins with its own while those of the others
come. One whose inputs are cut makes a share of every token's result: the others' first, and its own while those are on their way.

megatron-core has tokens cut over the group too, but only on CUDA and with whole collectives before and behind the products; these run on
gloo as well, so that the layout is tested without GPUs.
"""

import torch
import torch.distributed as dist
from torch.autograd.function import FunctionCtx, once_differentiable

# Below, the groups' own methods: the functions of torch.distributed take the host 5 to 15 us longer, as long as a launch.


def _gathering(x: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, dist.Work]:
    """The tokens of all ranks, once the work is waited for."""
    whole = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    return whole, group._allgather_base(whole, x)


def _multiply(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    if bias is None:
        torch.mm(x, matrix, out=out)
    else:
        torch.addmm(bias, x, matrix, out=out)


def _from_all(
    x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Own tokens (X / size, K), matrix (K, N) -> (the product of all tokens (X, N), all tokens (X, K))."""
    whole, gathering = _gathering(x, group)
    product = x.new_empty(whole.shape[0], matrix.shape[1])
    begin = group.rank() * x.shape[0]
    end = begin + x.shape[0]
    _multiply(x, matrix, bias, product[begin:end])
    gathering.wait()
    if begin:
        _multiply(whole[:begin], matrix, bias, product[:begin])
    if end < whole.shape[0]:
        _multiply(whole[end:], matrix, bias, product[end:])
    return product, whole


class _Shares:
    """All tokens (X, K) of this rank's share of K, matrix (K, N): products on their way to whose tokens they are; `total` sums the own."""

    def __init__(self, x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, group: dist.ProcessGroup) -> None:
        size, rank = group.size(), group.rank()
        part = x.shape[0] // size
        begin, end = rank * part, (rank + 1) * part
        self._sent = x.new_empty((size - 1) * part, matrix.shape[1])  # kept until it has arrived
        if begin:
            torch.mm(x[:begin], matrix, out=self._sent[:begin])
        if end < x.shape[0]:
            torch.mm(x[end:], matrix, out=self._sent[begin:])
        counts = [part] * size
        counts[rank] = 0
        self._received = torch.empty_like(self._sent)
        self._work = group.alltoall_base(self._received, self._sent, counts, counts)
        own = x[begin:end]
        self._own = torch.mm(own, matrix) if bias is None else torch.addmm(bias, own, matrix)

    def total(self) -> torch.Tensor:
        """(X / size, N)."""
        self._work.wait()
        if self._received.shape == self._own.shape:
            return self._own.add_(self._received)
        return self._own.add_(self._received.view(-1, *self._own.shape).sum(0))


class _GatheredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group: dist.ProcessGroup
    ) -> torch.Tensor:
        product, whole = _from_all(x.contiguous(), weight.t(), bias, group)
        ctx.save_for_backward(whole, weight)
        ctx.group = group  # type: ignore[attr-defined]
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, None]:
        whole, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = grad.contiguous()
        shares = _Shares(grad, weight, None, ctx.group)  # type: ignore[attr-defined]
        grad_weight = grad.t() @ whole
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None  # type: ignore[attr-defined]
        return shares.total(), grad_weight, grad_bias, None


class _ScatteredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group = group  # type: ignore[attr-defined]
        return _Shares(x, weight.t(), bias, group).total()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, None]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = grad.contiguous()
        grad_x, whole = _from_all(grad, weight, None, ctx.group)  # type: ignore[attr-defined]
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None  # type: ignore[attr-defined]
        return grad_x, whole.t() @ x, grad_bias, None


def gathered_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group: dist.ProcessGroup) -> torch.Tensor:
    """Own tokens (X / size, input) -> all tokens of this rank's outputs (X, output / size), with `bias` (output / size,) where given.

    Keeps all tokens for the backward pass: twice the memory of keeping the own ones with two ranks, and no second gathering.
    """
    return _GatheredLinear.apply(x, weight, bias, group)


def scattered_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group: dist.ProcessGroup) -> torch.Tensor:
    """All tokens of this rank's inputs (X, input / size) -> own tokens (X / size, output), summed over the ranks, plus `bias` (output,).

    The gradient of `bias` is that of the own tokens alone.
    """
    return _ScatteredLinear.apply(x, weight, bias, group)


def gathered(x: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Own tokens (X / size, ...) -> all (X, ...); no gradient flows across ranks."""
    if group is None:
        return x
    whole, gathering = _gathering(x.detach().contiguous(), group)
    gathering.wait()
    return whole
