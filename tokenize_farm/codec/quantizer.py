"""Residual vector quantization with small cosine codebooks (factorized codes, as in the Descript audio codec).

Owns the codebooks, their training losses, their use and the revival of dead codes; knows nothing of audio.
Shapes: B clips, T frames, D width, Q levels, K codes a level, C codebook dimensions. Everything here runs in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """One level: project the residual to C dimensions, take the code of largest cosine, project it back."""

    usage: Tensor
    recent: Tensor

    def __init__(self, width: int, size: int, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, dim)
        self.codes = nn.Parameter(torch.randn(size, dim))
        self.up = nn.Linear(dim, width)
        self.register_buffer("usage", torch.ones(size))  # kept: tells how evenly the codes of trained weights are used
        self.register_buffer("recent", torch.zeros(size, dim), persistent=False)

    def nearest(self, points_BTC: Tensor) -> Tensor:
        """(B, T, C) -> codes (B, T) int64: one matrix product with the normalized codebook."""
        return (points_BTC @ F.normalize(self.codes, dim=-1).t()).argmax(-1)

    def lookup(self, codes_BT: Tensor) -> Tensor:
        """Codes (B, T) -> (B, T, D)."""
        return self.up(F.embedding(codes_BT, self.codes))

    def forward(self, residual_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns the quantized residual (straight-through), codes, both losses (B, T), and the points that were quantized."""
        points = self.down(residual_BTD)
        codes = self.nearest(points)
        chosen = F.embedding(codes, self.codes)
        commitment = (points - chosen.detach()).square().mean(-1)
        codebook = (points.detach() - chosen).square().mean(-1)
        return self.up(points + (chosen - points).detach()), codes, commitment, codebook, points.detach()

    @torch.no_grad()
    def observe(self, points_BTC: Tensor, codes_BT: Tensor, decay: float = 0.998) -> None:
        """Updates the moving usage (1 is even use) and keeps some points, for `revive`."""
        size = len(self.codes)
        counts = torch.zeros_like(self.usage).index_add_(0, codes_BT.flatten(), torch.ones_like(codes_BT, dtype=torch.float32).flatten())
        self.usage.mul_(decay).add_(counts * ((1 - decay) * size / codes_BT.numel()))
        points = points_BTC.reshape(-1, points_BTC.shape[-1])
        pick = torch.randint(len(points), (size,), device=points.device)
        self.recent.copy_(points[pick])

    @torch.no_grad()
    def revive(self, below: float) -> Tensor:
        """Moves codes of usage under `below` onto recent points; returns how many (a tensor, no synchronization)."""
        dead = self.usage < below
        self.codes.copy_(torch.where(dead[:, None], self.recent, self.codes))
        self.usage.copy_(torch.where(dead, torch.ones_like(self.usage), self.usage))
        return dead.sum()


class ResidualQuantizer(nn.Module):
    """Q codebooks, each on what the levels before it left over; any first n levels are a valid, coarser code."""

    _vectors: Tensor
    _directions: Tensor
    _down: Tensor
    _down_bias: Tensor
    _projected: Tensor

    def __init__(self, width: int, num_codebooks: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Codebook(width, codebook_size, codebook_dim) for _ in range(num_codebooks))
        self._size = codebook_size
        for name in ("_vectors", "_directions", "_down", "_down_bias", "_projected"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    def forward(self, hidden_BTD: Tensor, num_levels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training: quantizes clip b with its first `num_levels_B[b]` levels.

        Returns (quantized (B, T, D), mean commitment loss, mean codebook loss).
        """
        residual, total = hidden_BTD, torch.zeros_like(hidden_BTD)
        commitment = codebook = hidden_BTD.new_zeros(())
        for index, level in enumerate(self.levels):
            active = (index < num_levels_B).to(hidden_BTD.dtype)[:, None]
            quantized, codes, commit, book, points = level(residual)
            if self.training:
                level.observe(points, codes)
            total = total + quantized * active[..., None]
            residual = residual - quantized
            commitment = commitment + (commit * active).mean()
            codebook = codebook + (book * active).mean()
        return total, commitment, codebook

    def encode(self, hidden_BTD: Tensor, num_codebooks: int) -> Tensor:
        """(B, T, D) -> codes (B, T, num_codebooks) int64."""
        if self.frozen:
            return self._encode_frozen(hidden_BTD, num_codebooks)
        residual, codes = hidden_BTD, []
        for level in self.levels[:num_codebooks]:
            codes.append(level.nearest(level.down(residual)))
            residual = residual - level.lookup(codes[-1])
        return torch.stack(codes, -1)

    def decode(self, codes_BTQ: Tensor) -> Tensor:
        """Codes (B, T, n) of the first n levels -> (B, T, D)."""
        if not self.frozen:
            return sum(level.lookup(codes) for level, codes in zip(self.levels, codes_BTQ.unbind(-1)))
        rows = codes_BTQ + torch.arange(codes_BTQ.shape[-1], device=codes_BTQ.device) * self._size
        return F.embedding_bag(rows.flatten(0, 1), self._vectors, mode="sum").view(*codes_BTQ.shape[:2], -1)

    @property
    def frozen(self) -> bool:
        """Whether `freeze` made the tables."""
        return self._vectors.numel() > 0

    @torch.no_grad()
    def freeze(self) -> None:
        """Makes tables of everything that depends on the weights alone: for use, after the last change of them.

        Levels then work in their C dimensions: taking a code away from the residual is taking its projections away from those of the
        levels that follow, so that the D-wide residual is read once.
        """
        vectors = [level.up(level.codes) for level in self.levels]  # (K, D) each
        self._vectors = torch.cat(vectors)
        self._directions = torch.stack([F.normalize(level.codes, dim=-1).t() for level in self.levels])  # (Q, C, K)
        self._down = torch.cat([level.down.weight for level in self.levels])  # (Q * C, D)
        self._down_bias = torch.cat([level.down.bias for level in self.levels])
        self._projected = torch.stack([rows @ self._down.t() for rows in vectors])  # (Q, K, Q * C)

    def _encode_frozen(self, hidden_BTD: Tensor, num_codebooks: int) -> Tensor:
        dim, codes = self._directions.shape[1], []
        points = F.linear(hidden_BTD, self._down[: num_codebooks * dim], self._down_bias[: num_codebooks * dim])
        for index in range(num_codebooks):
            codes.append((points[..., :dim] @ self._directions[index]).argmax(-1))
            if index + 1 < num_codebooks:
                taken = F.embedding(codes[-1], self._projected[index, :, (index + 1) * dim : num_codebooks * dim])
                points = points[..., dim:] - taken
        return torch.stack(codes, -1)

    @torch.no_grad()
    def initialize(self, hidden_BTD: Tensor) -> None:
        """Puts every codebook on data: its codes become projected residuals of `hidden_BTD`, level after level."""
        residual = hidden_BTD
        for level in self.levels:
            points = level.down(residual)
            flat = points.reshape(-1, points.shape[-1])
            level.codes.copy_(flat[torch.randint(len(flat), (len(level.codes),), device=flat.device)])
            residual = residual - level(residual)[0]

    def revive(self, below: float) -> Tensor:
        """Revives dead codes of every level; returns their number as a tensor."""
        return torch.stack([level.revive(below) for level in self.levels]).sum()
