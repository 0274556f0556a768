"""A trained model's weights in the form that generation reads: norms folded into the products behind them, heads cut to the legal codes.

Owns the form and the mathematics of a block on it; caches and steps are `decode.py`. The sums are those of training in another order, so
logits agree to rounding. Under tensor parallelism a rank holds its part of the global blocks; all else is whole on each.
M rows of any kind (frames of a prompt, one frame a sequence), D width, K legal codes of a level.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from uniaudio.kernels.decode_linear import decode_linear
from uniaudio.kernels.decode_linear.interface import fold_norm, quantize_rows
from uniaudio.pretrain.model.blocks import Block
from uniaudio.pretrain.model.layers import LayerNorm
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.parallel.tensor import Backend, TensorParallel

Attend = Callable[[torch.Tensor], torch.Tensor]  # packed (M, N, 3, H) of this rank's heads -> (M, N * H)


@dataclass(frozen=True)
class Projection:
    """One linear map, with the norm before it where `norm_sums` is given. Fields as `decode_linear` takes them."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor | None
    norm_sums: torch.Tensor | None
    eps: float
    backend: Backend

    def __call__(
        self, x_MK: torch.Tensor, *, gelu: Literal["exact", "tanh"] | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(M, K) -> (M, N)."""
        return decode_linear(
            x_MK, self.weight, self.bias, scale_N=self.scale, norm_sums_N=self.norm_sums, eps=self.eps, gelu=gelu, residual_MN=residual,
            early=True, backend=self.backend,
        )  # fmt: skip


@torch.no_grad()
def make_projection(
    weight: torch.Tensor, bias: torch.Tensor | None, *, norm: LayerNorm | None, int8: bool, backend: Backend, eps: float = 0.0
) -> Projection:
    """The map of `weight` (N, K) and `bias`, behind `norm` where it is given; its rows as int8 where asked."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    folded, shift = (weight, bias) if norm is None else fold_norm(weight, bias, norm.weight, norm.bias)
    kept, scale = quantize_rows(folded) if int8 else (folded.to(weight.dtype), None)
    sums = None
    if norm is not None:  # of the weights as they are kept, so that the mean of x cancels exactly
        sums = kept.sum(dim=1, dtype=wide) if scale is None else kept.sum(dim=1, dtype=wide) * scale
    return Projection(kept.contiguous(), None if shift is None else shift.to(wide), scale, sums, norm.eps if norm else eps, backend)


class DecodeBlock:
    """One block of either stack: x + attention(norm(x)), then x + mlp(norm(x)), in five products."""

    def __init__(self, block: Block, *, tensor: TensorParallel, int8: bool, backend: Backend) -> None:
        attention, mlp = block.attention, block.mlp
        self.num_heads, self.head_dim, self.gelu, self.tensor = attention.num_heads, attention.head_dim, mlp.gelu, tensor
        norms = (block.attention_norm, block.mlp_norm)
        self.qkv = make_projection(attention.qkv.weight, attention.packed_bias(), norm=norms[0], int8=int8, backend=backend)
        self.out = make_projection(attention.out.weight, attention.out.bias, norm=None, int8=int8, backend=backend)
        self.up = make_projection(mlp.up.weight, mlp.up.bias, norm=norms[1], int8=int8, backend=backend)
        self.down = make_projection(mlp.down.weight, mlp.down.bias, norm=None, int8=int8, backend=backend)

    def __call__(self, x_MD: torch.Tensor, attend: Attend) -> torch.Tensor:
        """(M, D) -> (M, D)."""
        packed = self.qkv(x_MD).view(len(x_MD), self.num_heads, 3, self.head_dim)
        x_MD = self._add(self.out, attend(packed), x_MD)
        return self._add(self.down, self.up(x_MD, gelu=self.gelu), x_MD)

    def _add(self, projection: Projection, x_MK: torch.Tensor, residual_MD: torch.Tensor) -> torch.Tensor:
        """residual + the map of x, whose inputs are cut over the group."""
        if self.tensor.size == 1:
            return projection(x_MK, residual=residual_MD)
        part = Projection(projection.weight, None, projection.scale, None, projection.eps, projection.backend)(x_MK)
        dist.all_reduce(part, group=self.tensor.group)
        assert projection.bias is not None
        return part + projection.bias.to(part.dtype) + residual_MD


class DecodeWeights:
    """Blocks, link and heads of `model`; the embeddings, and a link that cuts the frame in slices, stay the model's own modules.

    legal_ids: for each level the ids that may be drawn there, (K,) each. int8: the blocks' weights as int8 with a scale a row; the heads
    stay as they are. Weights are copied, so the blocks of `model` may be let go.
    """

    def __init__(self, model: MultiScaleTransformer, legal_ids: list[torch.Tensor], *, int8: bool = False) -> None:
        self.config, self.embed, self.link = model.config, model.embed, model.link
        self.backend = model.head.backend
        like = model.head.projection.weight
        self.device, self.dtype = like.device, like.dtype
        self.global_blocks = [self._block(block, int8, model.tensor_parallel) for block in model.global_blocks]
        self.local_blocks = [self._block(block, int8, TensorParallel()) for block in model.local_blocks]
        self._link = None
        if not self.link.split:
            linear = self.link.linear
            self._link = make_projection(linear.weight, linear.bias, norm=self.link.norm, int8=False, backend=self.backend)
        table_VD = like.detach()
        self.heads = [
            make_projection(table_VD[ids.to(self.device)], None, norm=model.head.norm, int8=False, backend=self.backend)
            for ids in legal_ids
        ]

    def context(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        """(B, D) -> the frame's part of the local input, (B, Q, D), or (B, 1, D) where every level gets the same."""
        return self.link.context(hidden_BD) if self._link is None else self._link(hidden_BD).unsqueeze(1)

    def _block(self, block: torch.nn.Module, int8: bool, tensor: TensorParallel) -> DecodeBlock:
        assert isinstance(block, Block)
        return DecodeBlock(block, tensor=tensor, int8=int8, backend=self.backend)
