"""From the global to the local stack: the input of code q of frame t is code q-1 (`<mega_local>` first), its level, and h_t.

`shared` (the paper) maps the whole of h_t, the same for every level; `split` (the released code) cuts h_t into Q slices and maps
the q-th. Structures without a local stack (`pretrain.data.patterns`) predict the codes of a step from h_t and the level alone.
"""

import torch
from torch import nn
from torch.nn import functional as F

from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.model.layers import LayerNorm, Linear, Table
from uniaudio.pretrain.model.state import State
from uniaudio.pretrain.parallel.tensor import Backend, TensorParallel, vocabulary_embedding


class Link(nn.Module):
    """State with hidden (B*T, D) -> State with hidden (B*T, Q, D), of this rank's frames."""

    def __init__(self, config: ModelConfig, *, vocabulary_size: int, mega_local: int, tensor: TensorParallel, backend: Backend) -> None:
        super().__init__()
        self.tensor = tensor
        self.num_codebooks, self.mega_local = config.num_codebooks, mega_local
        self.backend = backend
        self.split = config.link == "split"
        self.norm = LayerNorm(config.width, eps=config.norm_eps, backend=backend)
        self.linear = Linear(config.width // config.num_codebooks if self.split else config.width, config.width)
        self.code = vocabulary_embedding(vocabulary_size, config.width) if config.local_layers else None
        self.level = Table(config.num_codebooks, config.width)

    def context(self, hidden_XD: torch.Tensor) -> torch.Tensor:
        """The frame's part of the local input: (X, Q, D), or (X, 1, D) where every level gets the same."""
        normed = self.norm(hidden_XD)
        return self.linear(normed.unflatten(1, (self.num_codebooks, -1)) if self.split else normed.unsqueeze(1))

    def codes(self, codes_Y: torch.Tensor, levels_Y: torch.Tensor) -> torch.Tensor:
        """Vectors (Y, D) of single codes (the level below) with those of the levels that they are inputs of."""
        assert self.code is not None
        return self.code(codes_Y.unsqueeze(1), levels_Y, self.level.weight, mode="sum", backend=self.backend)

    def forward(self, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """State -> State."""
        now = State(*state)
        if self.code is None:
            return now.with_hidden(self.context(now.hidden) + self.level.weight)
        codes_XQ = now.codes_BTQ.flatten(0, 1)
        shifted_XQ = F.pad(codes_XQ[self.tensor.own(len(codes_XQ)), :-1], (1, 0), value=self.mega_local)
        levels_Y = torch.arange(self.num_codebooks, device=shifted_XQ.device).repeat(shifted_XQ.shape[0])
        vectors_XQD = self.codes(shifted_XQ.flatten(), levels_Y).unflatten(0, shifted_XQ.shape)
        return now.with_hidden(self.context(now.hidden) + vectors_XQD)
