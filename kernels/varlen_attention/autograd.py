"""The differentiable function over forward.py and backward.py."""

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from uniaudio.kernels.varlen_attention.backward import backward
from uniaudio.kernels.varlen_attention.boundaries import Spans, document_spans
from uniaudio.kernels.varlen_attention.forward import forward
from uniaudio.kernels.varlen_attention.tiles import copies_in_bulk, default_plan


class VarlenAttention(torch.autograd.Function):
    """Saves the packed projection, the output, one float a (frame, head) and the spans."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv_BTN3H: torch.Tensor, document_starts_BD: torch.Tensor, prefix_lengths_BD: torch.Tensor | None
    ) -> torch.Tensor:
        spans = document_spans(document_starts_BD, prefix_lengths_BD, qkv_BTN3H.shape[1])
        packed, bulk = document_starts_BD.shape[1] > 1, copies_in_bulk(qkv_BTN3H.device)
        ctx.plan = default_plan(qkv_BTN3H.shape[-1], qkv_BTN3H.dtype, packed=packed, bulk=bulk)
        out, sums = forward(qkv_BTN3H, spans, ctx.plan.forward)
        ctx.save_for_backward(qkv_BTN3H, out, sums, *spans)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_out: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        qkv_BTN3H, out, sums, *spans = ctx.saved_tensors
        return backward(qkv_BTN3H, out, sums, grad_out.contiguous(), Spans(*spans), ctx.plan), None, None
