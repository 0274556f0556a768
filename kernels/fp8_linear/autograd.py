"""The differentiable functions: linear map, norm + linear map, and the whole second half of a block.

They are as large as a chain of tensors of which only the 8-bit form is wanted: what is cast where it is made never exists in more bits.
All three products of a layer are made of 8 bits: y = x W^T, dx = dy W, dW = dy^T x. Saved for the backward pass are 8-bit tensors, so
they cost half the memory of those of a layer in bf16. Rows are tokens; tensors are (R, width).
Weights are cast in every forward pass: where a step is one micro-batch that is once a step, and nothing can be stale.
`ops`: the module whose functions do the work, `reference` or `triton_kernels`.
"""

from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from uniaudio.kernels.fp8_linear.reference import Eight

Gradients = tuple[torch.Tensor | None, ...]


def _cast_gradient(ops: ModuleType, grad: torch.Tensor, has_bias: bool) -> tuple[Eight, torch.Tensor | None]:
    """And the bias's own gradient, which is in the pass."""
    return ops.cast_summed(grad) if has_bias else (ops.cast(grad), None)


class Linear(torch.autograd.Function):
    """x W^T + bias."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, ops: ModuleType) -> torch.Tensor:
        inputs, weights = ops.cast(x), ops.cast(weight)
        ctx.save_for_backward(inputs.columns, inputs.scale, weights.columns, weights.scale)
        ctx.ops = ops
        return ops.product(inputs.rows, inputs.scale, weights.rows, weights.scale, x.dtype, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Gradients:
        inputs, inputs_scale, weights, weights_scale = ctx.saved_tensors
        grad = grad.contiguous()
        eight, grad_bias = _cast_gradient(ctx.ops, grad, ctx.needs_input_grad[2])
        grad_x = ctx.ops.product(eight.rows, eight.scale, weights, weights_scale, grad.dtype)
        grad_weight = ctx.ops.product(eight.columns, eight.scale, inputs, inputs_scale, grad.dtype, over_tokens=True)
        return grad_x, grad_weight, grad_bias, None


class NormLinear(torch.autograd.Function):
    """(LayerNorm(x) W^T + bias, x): the residual branch leaves here, and the norm's backward pass adds the two gradients of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        ops: ModuleType,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, scale, kept = ops.norm_cast(x, None, norm_weight, norm_bias, eps)
        weights = ops.cast(weight)
        ctx.save_for_backward(norm_weight, norm_bias, rows, scale, weights.columns, weights.scale, *kept)
        ctx.ops, ctx.eps = ops, eps
        return ops.product(rows, scale, weights.rows, weights.scale, x.dtype, bias), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, grad_total: torch.Tensor) -> Gradients:
        norm_weight, norm_bias, rows, scale, weights, weights_scale, *kept = ctx.saved_tensors
        ops, grad = ctx.ops, grad.contiguous()
        eight, grad_bias = _cast_gradient(ops, grad, ctx.needs_input_grad[5])
        grad_normed = ops.product(eight.rows, eight.scale, weights, weights_scale, grad.dtype)
        grad_weight = ops.product(eight.columns, eight.scale, ops.turned(rows), scale, grad.dtype, over_tokens=True)
        norm_grads = ops.norm_gradient(kept, norm_weight, norm_bias, ctx.eps, grad_normed, grad_total.contiguous(), sums=False)
        return *norm_grads, None, grad_weight, grad_bias, None


class Mlp(torch.autograd.Function):
    """total + down(gelu(up(LayerNorm(total)))) of total = x + residual, and the gradient of a bias that is in x already.

    The gradients of it and of down's bias are sums over rows that the norm's backward pass has at hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor,
        norm_weight: torch.Tensor,
        norm_bias: torch.Tensor,
        eps: float,
        up: torch.Tensor,
        up_bias: torch.Tensor,
        down: torch.Tensor,
        down_bias: torch.Tensor,
        x_bias: torch.Tensor,
        exact: bool,
        recompute: bool,
        ops: ModuleType,
    ) -> torch.Tensor:
        rows, scale, kept = ops.norm_cast(x, residual, norm_weight, norm_bias, eps)
        up8, down8 = ops.cast(up), ops.cast(down)
        bound = ops.gelu_bound(norm_weight, norm_bias, up_bias, ops.reach(up8.rows, up8.scale))
        inner = ops.product(rows, scale, up8.rows, up8.scale, x.dtype)
        hidden = ops.gelu_cast(inner, up_bias, bound, exact)
        saved = [norm_weight, norm_bias, up_bias, rows, scale, up8.columns, up8.scale, down8.columns, down8.scale, inner]
        ctx.save_for_backward(*saved, bound, None if recompute else hidden.columns, hidden.scale, *kept)
        ctx.ops, ctx.eps, ctx.exact = ops, eps, exact
        return ops.product(hidden.rows, hidden.scale, down8.rows, down8.scale, x.dtype, down_bias).add_(kept[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Gradients:
        ops, grad = ctx.ops, grad.contiguous()
        norm_weight, norm_bias, up_bias, rows, scale, up, up_scale, down, down_scale, inner, *more = ctx.saved_tensors
        bound, hidden, hidden_scale, *kept = more
        if hidden is None:
            hidden = ops.gelu_cast(inner, up_bias, bound, ctx.exact).columns
        outer, grad_reach = ops.reach_cast(grad)
        grad_hidden = ops.product(outer.rows, outer.scale, down, down_scale, grad.dtype)
        grad_down = ops.product(outer.columns, outer.scale, hidden, hidden_scale, grad.dtype, over_tokens=True)
        eight, grad_up_bias = ops.gelu_gradient_cast(inner, up_bias, grad_hidden, grad_reach, ops.reach(down, down_scale), ctx.exact)
        grad_normed = ops.product(eight.rows, eight.scale, up, up_scale, grad.dtype)
        grad_up = ops.product(eight.columns, eight.scale, ops.turned(rows), scale, grad.dtype, over_tokens=True)
        grad_x, grad_norm_weight, grad_norm_bias, x_sum, grad_sum = ops.norm_gradient(
            kept, norm_weight, norm_bias, ctx.eps, grad_normed, grad, sums=True
        )
        norm = (grad_norm_weight, grad_norm_bias, None)
        return grad_x, grad_x, *norm, grad_up, grad_up_bias, grad_down, grad_sum, x_sum, None, None, None
