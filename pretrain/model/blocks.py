"""Pre-norm Transformer blocks of both stacks: x + attention(norm(x)), then x + mlp(norm(x)).

The two stacks differ in who attends to whom only: packed documents in the global one, the codes of a frame in the local one.
The projection is packed (N, 3, H), heads outermost, and the attention kernels read it as it is (design decision 8).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from uniaudio.configs.model import ModelConfig
from uniaudio.configs.parallel import Recompute
from uniaudio.kernels.activation import bias_gelu
from uniaudio.kernels.fp8_linear import fp8_mlp, fp8_norm_linear
from uniaudio.kernels.frame_attention import frame_attention
from uniaudio.kernels.packed_bias import packed_bias_gradient
from uniaudio.kernels.rotary import rotate
from uniaudio.kernels.varlen_attention import varlen_attention
from uniaudio.pretrain.model.layers import LayerNorm
from uniaudio.pretrain.model.state import State
from uniaudio.pretrain.parallel.tensor import Backend, TensorParallel, column_linear, row_linear

Attend = Callable[[torch.Tensor], torch.Tensor]  # packed (..., N, 3, H) of this rank's heads -> (..., N * H)


class Attention(nn.Module):
    """Packed projection, an attention given by the caller, output projection. No bias on the key (paper, section Model)."""

    bias_gradient_apart = False  # by a kernel that leaves the keys' zeros out

    def __init__(self, width: int, num_heads: int, *, tensor: TensorParallel, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.num_heads, self.head_dim = num_heads // tensor.size, width // num_heads
        self.qkv = column_linear(width, 3 * width, tensor, bias_width=2 * width)
        self.out = row_linear(width, width, tensor)

    def packed_bias(self) -> torch.Tensor:
        """The bias of query and value, (N, 2, H), widened to the packed order (N, 3, H) with zeros for the key."""
        query, value = self.qkv.bias.view(self.num_heads, 2, self.head_dim).unbind(dim=1)
        return torch.stack((query, torch.zeros_like(query), value), dim=1).flatten()

    def forward(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        return self.after_projection(self.qkv(x, self.added_bias()), attend)

    def added_bias(self) -> torch.Tensor:
        """The packed bias, detached where a kernel of its own makes its gradient."""
        bias = self.packed_bias()
        return bias.detach() if self.bias_gradient_apart else bias

    def after_projection(self, projected: torch.Tensor, attend: Attend) -> torch.Tensor:
        """(..., 3 D) with its bias -> (..., D)."""
        packed = projected.unflatten(-1, (self.num_heads, 3, self.head_dim))
        if self.bias_gradient_apart:
            packed = packed_bias_gradient(packed, self.qkv.bias.view(self.num_heads, 2, self.head_dim), backend=self.backend)
        return self.out(attend(packed))


class Mlp(nn.Module):
    """down(gelu(up(x))); with `recompute` the activation is computed again in the backward pass, from up's output."""

    def __init__(
        self, width: int, ffn_width: int, *, gelu: Literal["exact", "tanh"], tensor: TensorParallel, backend: Backend, recompute: bool
    ) -> None:
        super().__init__()
        self.gelu, self.backend, self.recompute = gelu, backend, recompute
        self.up = column_linear(width, ffn_width, tensor, bias_width=ffn_width)
        self.down = row_linear(ffn_width, width, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        inner = self.up(x)
        if self.recompute and torch.is_grad_enabled():
            # Stops where the last saved tensor is there again, so the product of `down` itself is not repeated.
            return checkpoint(self._down, inner, use_reentrant=False, preserve_rng_state=False)
        return self._down(inner)

    def _down(self, inner: torch.Tensor) -> torch.Tensor:
        return self.down(bias_gelu(inner, self.up.bias, approximate=self.gelu, backend=self.backend))


class Block(nn.Module):
    """One block over (..., D) of this rank's tokens; the subclasses say how to attend.

    fp8: the path of functions that span several layers, with products in 8 bits; None where every layer computes by itself.
    """

    fp8: Backend | None = None

    def __init__(self, config: ModelConfig, *, num_heads: int, tensor: TensorParallel, backend: Backend, recompute: Recompute) -> None:
        super().__init__()
        self.recompute = recompute == "full"
        self.attention_norm = LayerNorm(config.width, eps=config.norm_eps, backend=backend)
        self.attention = Attention(config.width, num_heads, tensor=tensor, backend=backend)
        self.mlp_norm = LayerNorm(config.width, eps=config.norm_eps, backend=backend)
        self.mlp = Mlp(config.width, config.ffn_width, gelu=config.gelu, tensor=tensor, backend=backend, recompute=recompute == "selective")
        # The gradients of the biases behind are sums over rows of what the norm between them reads and writes in its backward pass.
        self.let_kernels_sum_biases(backend == "triton")

    def let_kernels_sum_biases(self, chosen: bool) -> None:
        """Whether the norm and the packed bias's kernel do."""
        self.attention.bias_gradient_apart = chosen
        self.norm_sums_biases = self.attention.out.bias_gradient_elsewhere = self.mlp.down.bias_gradient_elsewhere = chosen

    def multiply_in_8_bits(self, backend: Backend) -> None:
        """From now on; a layer that runs by itself too."""
        self.fp8 = self.attention.qkv.fp8 = self.attention.out.fp8 = self.mlp.up.fp8 = self.mlp.down.fp8 = backend
        self.attention.out.bias_gradient_elsewhere, self.attention.bias_gradient_apart = True, False  # the cast of a gradient sums it

    def let_layers_run_alone(self) -> None:
        """No function takes the parameters of several layers: where a parameter exists only while its own layer runs (ZeRO-3)."""
        self.fp8 = None
        self.let_kernels_sum_biases(False)

    def _residual_in_8_bits(self, x: torch.Tensor, attend: Attend, backend: Backend) -> torch.Tensor:
        attention, mlp, norm = self.attention, self.mlp, self.attention_norm
        projected, x = fp8_norm_linear(x, norm.weight, norm.bias, norm.eps, attention.qkv.weight, attention.added_bias(), backend=backend)
        attended, norm = attention.after_projection(projected, attend), self.mlp_norm
        up, down = (mlp.up.weight, mlp.up.bias), (mlp.down.weight, mlp.down.bias)
        kept = {"x_bias": attention.out.bias, "approximate": mlp.gelu, "recompute": mlp.recompute}
        return fp8_mlp(attended, x, norm.weight, norm.bias, norm.eps, up, down, **kept, backend=backend)

    def residual(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:
        """The block's mathematics, (..., D) -> (..., D); generation calls it with an attention over its caches."""
        if self.fp8 is not None:
            return self._residual_in_8_bits(x, attend, self.fp8)
        normed, x = self.attention_norm.branch(x)
        biases = {"x_bias": self.attention.out.bias, "total_bias": self.mlp.down.bias} if self.norm_sums_biases else {}
        normed, x = self.mlp_norm.after_add(self.attention(normed, attend), x, **biases)
        return x + self.mlp(normed)

    def attend(self, packed: torch.Tensor, state: State) -> torch.Tensor:
        """The attention of this stack in training."""
        raise NotImplementedError

    def forward(self, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """State -> State; with `recompute` only the block's input is kept for the backward pass."""
        now = State(*state)

        def attend(packed: torch.Tensor) -> torch.Tensor:
            return self.attend(packed, now)

        if self.recompute and torch.is_grad_enabled():
            return now.with_hidden(checkpoint(self.residual, now.hidden, attend, use_reentrant=False, preserve_rng_state=False))
        return now.with_hidden(self.residual(now.hidden, attend))


class GlobalBlock(Block):
    """Attention over the frames of each packed document: causal, and both ways in its prefix under prefix-LM. Hidden (B*T, D)."""

    def __init__(self, config: ModelConfig, *, tensor: TensorParallel, backend: Backend, recompute: Recompute) -> None:
        super().__init__(config, num_heads=config.num_heads, tensor=tensor, backend=backend, recompute=recompute)
        self.prefix_lm, self.rotary, self.rotate_backend = config.prefix_lm, config.positions == "time", backend
        self.backend = backend if config.attention == "kernels" else config.attention

    def attend(self, packed: torch.Tensor, state: State) -> torch.Tensor:
        """(B*T, N, 3, H) -> (B*T, N*H)."""
        rows, frames, _ = state.codes_BTQ.shape
        prefix = state.prefix_lengths_BD if self.prefix_lm else None
        if self.rotary:
            packed = rotate(packed, state.positions_BT.flatten(), backend=self.rotate_backend)
        return varlen_attention(packed.unflatten(0, (rows, frames)), state.document_starts_BD, prefix, backend=self.backend).flatten(0, 1)


class LocalBlock(Block):
    """Causal attention over the Q codes of each frame, whole on every rank. Hidden (B*T, Q, D)."""

    def __init__(self, config: ModelConfig, *, backend: Backend, recompute: Recompute) -> None:
        super().__init__(config, num_heads=config.local_heads, tensor=TensorParallel(), backend=backend, recompute=recompute)
        self.backend = backend

    def attend(self, packed: torch.Tensor, state: State) -> torch.Tensor:
        """(B*T, Q, N, 3, H) -> (B*T, Q, N*H)."""
        return frame_attention(packed, backend=self.backend)
