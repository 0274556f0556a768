"""Drawing one code from logits: temperature, top-k, top-p, and a noise stream that belongs to the sequence.

Owns the choice of one id; knows neither the model nor the vocabulary. Shapes: (B, V) logits in, (B,) ids out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uniaudio.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How to draw (paper, section Optimisation: top-k 30, temperature 0.8). temperature 0 is greedy."""

    top_k: int = 30
    temperature: float = 0.8
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UserError("top-k must be at least 1", seen=self.top_k, allowed=">= 1", remedy="30 is the paper's")
        if self.temperature < 0:
            raise UserError("temperature must not be negative", seen=self.temperature, allowed=">= 0", remedy="0 is greedy")
        if not 0 < self.top_p <= 1:
            raise UserError("top-p must lie in (0, 1]", seen=self.top_p, allowed="(0, 1]")


def sequence_generators(seed: int, count: int) -> list[torch.Generator]:
    """One noise stream a sequence, so that a sequence gets the same codes alone and in a batch."""
    return [torch.Generator().manual_seed(seed + index) for index in range(count)]


def draw(logits_BV: torch.Tensor, legal_BV: torch.Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """(B, V) logits -> (B,) int64 ids among the legal ones.

    Candidates are the top k legal ids; the draw is an exponential race (argmax p / e with e ~ Exp(1)), whose noise is
    drawn for every rank of the k candidates whether used or not, so that a stream never depends on its neighbours.

    Args:
        logits_BV: any float dtype.
        legal_BV: bool; at least one True a row.
        generators: B noise streams.

    Raises:
        ValueError: a row without a legal id.
    """
    if not bool(legal_BV.any(dim=-1).all()):
        raise ValueError("draw: a row has no legal id")
    logits_BV = logits_BV.float().masked_fill(~legal_BV, float("-inf"))
    count = min(sampling.top_k, logits_BV.shape[-1])
    top_BK, ids_BK = logits_BV.topk(count, dim=-1)
    noise_BK = torch.stack([torch.empty(count).exponential_(generator=generator) for generator in generators]).to(top_BK.device)
    if sampling.temperature == 0:
        return ids_BK[:, 0]
    p_BK = torch.softmax(top_BK / sampling.temperature, dim=-1)
    outside_BK = p_BK.cumsum(dim=-1) - p_BK >= sampling.top_p
    race_BK = p_BK.masked_fill(outside_BK, 0.0) / noise_BK.clamp_min(1e-30)
    return ids_BK.gather(-1, race_BK.argmax(dim=-1, keepdim=True)).squeeze(-1)
