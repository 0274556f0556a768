"""Last layer: final norm, projection to the vocabulary, cross entropy summed by task and codebook level.

Sums and counts, never means: the engine divides by the global number of target codes (design decision 7). Under tensor parallelism they
are of this rank's frames.
"""

import torch
from torch import nn
from torch.nn import functional as F

from uniaudio.configs.model import ModelConfig
from uniaudio.kernels.loss import linear_cross_entropy
from uniaudio.kernels.loss.places import counted_places
from uniaudio.pretrain.data.batch import document_ids_BT
from uniaudio.pretrain.model.layers import LayerNorm
from uniaudio.pretrain.model.state import State
from uniaudio.pretrain.parallel.tensor import Backend, TensorParallel, vocabulary_projection


class Head(nn.Module):
    """State with hidden (B*T, Q, D) -> (loss_sums_KQ, counts_KQ), float32; K tasks."""

    def __init__(self, config: ModelConfig, *, vocabulary_size: int, num_tasks: int, tensor: TensorParallel, backend: Backend) -> None:
        super().__init__()
        self.vocabulary_size, self.num_tasks, self.tensor = vocabulary_size, num_tasks, tensor
        self.backend = backend
        self.sparse = config.structure != "multi_scale"  # most slots of a step may be empty (`pretrain.data.patterns`)
        self.norm = LayerNorm(config.width, eps=config.norm_eps, backend=backend)
        self.projection = vocabulary_projection(vocabulary_size, config.width)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V), without the padding rows."""
        return F.linear(self.norm(hidden), self.projection.weight)[..., : self.vocabulary_size]

    def forward(self, state: tuple[torch.Tensor, ...], target_count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """State -> cross entropy in nats, summed over the target codes of each task and level, and how many there were.

        target_count: of this rank's target codes, where the host knows it; else it waits for the device to tell.
        """
        now = State(*state)
        rows, frames, levels = now.codes_BTQ.shape
        own = self.tensor.own(rows * frames)
        targets_X, mask_X = (codes_BTQ.flatten(0, 1)[own].flatten() for codes_BTQ in (now.codes_BTQ, now.target_mask_BTQ))
        if self.sparse:
            kept = counted_places(mask_X, target_count)
            losses = self._losses(now.hidden.flatten(0, 1)[kept], targets_X[kept], mask_X[kept], target_count)
            losses_X = losses.new_zeros(len(mask_X)).index_copy(0, kept, losses)
        else:
            losses_X = self._losses(now.hidden, targets_X, mask_X, target_count)
        tasks_X = now.task_ids_BD.gather(1, document_ids_BT(now.document_starts_BD, frames)).flatten()[own]
        tasks_K = torch.arange(self.num_tasks, device=tasks_X.device)
        # A masked sum rather than an index_add: the same order, hence the same bits, on every run.
        member_KX1 = (tasks_X == tasks_K.unsqueeze(1)).unsqueeze(-1)
        sums_KQ = (losses_X.view(-1, levels) * member_KX1).sum(dim=1)
        counts_KQ = (mask_X.view(-1, levels) * member_KX1).sum(dim=1).to(torch.float32)
        return sums_KQ, counts_KQ

    def _losses(self, hidden: torch.Tensor, targets_X: torch.Tensor, mask_X: torch.Tensor, count: int | None) -> torch.Tensor:
        """(..., D) -> (X,): cross entropy of each code, 0 where the mask is."""
        return linear_cross_entropy(
            self.norm(hidden).flatten(0, -2),
            self.projection.weight,
            targets_X,
            mask_X,
            num_valid=self.vocabulary_size,
            backend=self.backend,
            count=count,
        )
