"""Output projection + cross-entropy of the counted codes: cuBLAS for the products of a chunk, Triton for everything between them.

The forward pass keeps one float a code, the log-sum-exp, and the logits of as many chunks as fit into KEPT_BYTES; those of the other
chunks live only until the next chunk and are computed again in the backward pass, where their gradient overwrites them in place. With a
vocabulary-parallel group each rank handles its rows of the vocabulary, and three vectors (highest logit, sum of exponentials, target's
logit) cross the group once for all codes.
C codes of a chunk, V rows of the vocabulary on this rank, D width.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

from uniaudio.kernels.loss.places import counted_places

# 69 MB of bf16 logits at V 4224: larger products run nearer to the peak than smaller logits save by staying in the L2 cache.
CODES_A_CHUNK = 8_192
KEPT_BYTES = 2**30  # of logits, until the backward pass: a product less, and the same bits
BLOCK = 2_048  # logits a step
WARPS = 8


@triton.jit
def _row_statistics(logits, targets, highests, sums, picked, columns, first, num_valid, BLOCK: tl.constexpr):
    """Highest logit, sum of exp(logit - highest), and the target's logit (0 on a rank that does not hold it) of one code."""
    row = tl.program_id(0).to(tl.int64)
    local_valid = tl.minimum(num_valid - first, columns)
    highest = tl.full((), -1.0e30, tl.float32)
    total = tl.zeros((), tl.float32)
    for begin in range(0, local_valid, BLOCK):
        col = begin + tl.arange(0, BLOCK)
        values = tl.load(logits + row * columns + col, mask=col < local_valid, other=float("-inf")).to(tl.float32)
        new_highest = tl.maximum(highest, tl.max(values, axis=0))
        total = total * tl.exp(highest - new_highest) + tl.sum(tl.exp(values - new_highest), axis=0)
        highest = new_highest
    target = tl.load(targets + row)
    here = (target >= first) & (target < first + local_valid)
    value = tl.load(logits + row * columns + (target - first), mask=here, other=0.0).to(tl.float32)
    # An impossible target cannot be seen without stalling the stream: it makes its loss NaN, which a trainer notices.
    value = tl.where((target < 0) | (target >= num_valid), float("nan"), value)
    tl.store(highests + row, highest)
    tl.store(sums + row, total)
    tl.store(picked + row, value)


@triton.jit
def _row_gradient(logits, targets, log_sums, grads, columns, first, num_valid, BLOCK: tl.constexpr):
    """Overwrites a block of one code's logits with their gradient; padding gets 0."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * columns + col
    valid = col < tl.minimum(num_valid - first, columns)
    values = tl.load(place, mask=valid, other=float("-inf")).to(tl.float32)
    result = tl.exp(values - tl.load(log_sums + row)) - (col + first == tl.load(targets + row)).to(tl.float32)
    result = tl.where(valid, result * tl.load(grads + row), 0.0)
    tl.store(place, result.to(logits.dtype.element_ty), mask=col < columns)


def _chunks(count: int) -> list[slice]:
    return [slice(begin, min(begin + CODES_A_CHUNK, count)) for begin in range(0, count, CODES_A_CHUNK)]


def statistics(
    hidden_XD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_C: torch.Tensor,
    counted_C: torch.Tensor,
    first: int,
    num_valid: int,
    keep: bool,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(3, C) float32: highest, sum and picked of the counted codes over this rank's rows of the vocabulary; with `keep` the logits of the
    first chunks, what fits."""
    columns = weight_VD.shape[0]
    result = torch.empty(3, counted_C.numel(), dtype=torch.float32, device=hidden_XD.device)
    kept: list[torch.Tensor] = []
    room = KEPT_BYTES if keep else 0
    for chunk in _chunks(counted_C.numel()):
        logits_CV = hidden_XD[counted_C[chunk]] @ weight_VD.T
        _row_statistics[(logits_CV.shape[0],)](
            logits_CV, targets_C[chunk], *(vector[chunk] for vector in result), columns, first, num_valid, BLOCK, num_warps=WARPS
        )
        room -= logits_CV.nbytes
        if room >= 0:
            kept.append(logits_CV)
    return result, kept


def _accumulate(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total (float32) += a @ b, in the product's own accumulators where PyTorch has that form: CUDA, 16-bit operands."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def gradients(
    hidden_XD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_C: torch.Tensor,
    counted_C: torch.Tensor,
    log_sums_C: torch.Tensor,
    grads_C: torch.Tensor,
    first: int,
    num_valid: int,
    kept: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the hidden states (this rank's part) and of the weight, which is summed over the chunks in float32. Uses `kept` up."""
    columns = weight_VD.shape[0]
    grad_hidden_XD = torch.zeros_like(hidden_XD)
    grad_weight_VD = torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device)
    for chunk in _chunks(counted_C.numel()):
        hidden_CD = hidden_XD[counted_C[chunk]]
        logits_CV = kept.pop(0) if kept else hidden_CD @ weight_VD.T
        grid = (logits_CV.shape[0], triton.cdiv(columns, BLOCK))
        _row_gradient[grid](
            logits_CV, targets_C[chunk], log_sums_C[chunk], grads_C[chunk], columns, first, num_valid, BLOCK, num_warps=WARPS
        )
        grad_hidden_XD[counted_C[chunk]] = logits_CV @ weight_VD
        _accumulate(grad_weight_VD, logits_CV.T, hidden_CD)
    return grad_hidden_XD, grad_weight_VD.to(weight_VD.dtype)


class LinearCrossEntropy(torch.autograd.Function):
    """Losses (X,) float32; saves the inputs, one float a counted code, and with `keep` logits for one backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_XD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_X: torch.Tensor,
        mask_X: torch.Tensor,
        num_valid: int,
        group: dist.ProcessGroup | None,
        count: int | None,
        keep: bool,
    ) -> torch.Tensor:
        ctx.first = weight_VD.shape[0] * dist.get_rank(group) if group is not None else 0
        ctx.num_valid, ctx.group = num_valid, group
        counted_C = counted_places(mask_X, count)
        targets_C = targets_X[counted_C]
        vectors, ctx.kept = statistics(hidden_XD, weight_VD, targets_C, counted_C, ctx.first, num_valid, keep)
        highest_C, sum_C, picked_C = vectors
        if group is not None:
            local_highest_C = highest_C.clone()
            dist.all_reduce(highest_C, op=dist.ReduceOp.MAX, group=group)
            sum_C *= (local_highest_C - highest_C).exp()
            dist.all_reduce(sum_C, group=group)
            dist.all_reduce(picked_C, group=group)
        log_sums_C = highest_C + sum_C.log()
        ctx.save_for_backward(hidden_XD, weight_VD, targets_C, counted_C, log_sums_C)
        losses_X = torch.zeros(hidden_XD.shape[0], dtype=torch.float32, device=hidden_XD.device)
        losses_X[counted_C] = log_sums_C - picked_C
        return losses_X

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_X: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_XD, weight_VD, targets_C, counted_C, log_sums_C = ctx.saved_tensors
        grad_hidden_XD, grad_weight_VD = gradients(
            hidden_XD, weight_VD, targets_C, counted_C, log_sums_C, grad_X[counted_C].contiguous(), ctx.first, ctx.num_valid, ctx.kept
        )
        if ctx.group is not None:
            dist.all_reduce(grad_hidden_XD, group=ctx.group)
        return grad_hidden_XD, grad_weight_VD, None, None, None, None, None, None
