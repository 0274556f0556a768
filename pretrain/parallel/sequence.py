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


def _gathering(x: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, dist.Work | None]:
    """The tokens of all ranks, once the work is waited for."""
    whole = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    return whole, dist.all_gather_into_tensor(whole, x.contiguous(), group=group, async_op=True)


def _pieces(tokens: int, group: dist.ProcessGroup) -> tuple[slice, list[slice]]:
    """Of `tokens` tokens: this rank's, and what lies before and behind."""
    part = tokens // dist.get_world_size(group)
    own = slice(dist.get_rank(group) * part, (dist.get_rank(group) + 1) * part)
    return own, [piece for piece in (slice(0, own.start), slice(own.stop, tokens)) if piece.start < piece.stop]


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
    own, others = _pieces(whole.shape[0], group)
    product = x.new_empty(whole.shape[0], matrix.shape[1])
    _multiply(x, matrix, bias, product[own])
    if gathering is not None:
        gathering.wait()
    for piece in others:
        _multiply(whole[piece], matrix, bias, product[piece])
    return product, whole


class _Shares:
    """All tokens (X, K) of this rank's share of K, matrix (K, N): products on their way to whose tokens they are; `total` sums the own."""

    def __init__(self, x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, group: dist.ProcessGroup) -> None:
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        own, others = _pieces(x.shape[0], group)
        part = own.stop - own.start
        sent = x.new_empty((size - 1) * part, matrix.shape[1])
        begin = 0
        for piece in others:
            count = piece.stop - piece.start
            _multiply(x[piece], matrix, None, sent[begin : begin + count])
            begin += count
        counts = [0 if other == rank else part for other in range(size)]
        self._sent, self._received = sent, torch.empty_like(sent)  # kept until they have arrived
        self._work = dist.all_to_all_single(self._received, sent, counts, counts, group=group, async_op=True)
        self._own = x.new_empty(part, matrix.shape[1])
        _multiply(x[own], matrix, bias, self._own)

    def total(self) -> torch.Tensor:
        """(X / size, N)."""
        if self._work is not None:
            self._work.wait()
        for share in self._received.split(self._own.shape[0]):
            self._own += share
        return self._own


class _GatheredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group: dist.ProcessGroup
    ) -> torch.Tensor:
        product, whole = _from_all(x, weight.t(), bias, group)
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
    whole, gathering = _gathering(x.detach(), group)
    if gathering is not None:
        gathering.wait()
    return whole
