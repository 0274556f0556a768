"""The optimizer's operations in plain PyTorch: what the kernels must equal, and the path of the CPU."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AdamW:
    """Hyper-parameters of one step. step: 1 for the first, for the bias corrections."""

    rate: float
    decay: float
    betas: tuple[float, float]
    eps: float
    step: int

    @property
    def corrections(self) -> tuple[float, float]:
        """1 - beta^step of both moments."""
        return 1 - self.betas[0] ** self.step, 1 - self.betas[1] ** self.step


def pieces(flat: torch.Tensor, starts: list[int], gradients: list[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(stretch of `flat`, the gradient that belongs to it), for each gradient."""
    for start, gradient in zip(starts, gradients):
        yield flat[start : start + gradient.numel()], gradient.view(-1)


def square_sum(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Sum of squares, float32 scalar."""
    return torch.stack([gradient.float().square().sum() for gradient in gradients]).sum()


def accumulate(total: torch.Tensor, starts: list[int], gradients: list[torch.Tensor], *, first: bool) -> None:
    """total (+)= gradients, each at its start."""
    for part, gradient in pieces(total, starts, gradients):
        if first:
            part.copy_(gradient)
        else:
            part.add_(gradient)


def adamw_step(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None],
    starts: list[int],
    gradients: list[torch.Tensor],
    scale: torch.Tensor,
    settings: AdamW,
) -> None:
    """tensors: master, exp_avg, exp_avg_sq (flat float32) and the low-precision copy or None."""
    if not scale > 0:
        return
    masters, firsts, seconds, weights = tensors
    betas, corrections = settings.betas, settings.corrections
    for start, gradient in zip(starts, gradients):
        stretch = slice(start, start + gradient.numel())
        master, first, second = masters[stretch], firsts[stretch], seconds[stretch]
        value = gradient.view(-1).float() * scale
        first.lerp_(value, 1 - betas[0])
        second.mul_(betas[1]).addcmul_(value, value, value=1 - betas[1])
        master.mul_(1 - settings.rate * settings.decay)
        master.addcdiv_(first, (second.sqrt() / corrections[1] ** 0.5).add_(settings.eps), value=-settings.rate / corrections[0])
        if weights is not None:
            weights[stretch].copy_(master)
