"""What the codec is trained to make small: spectral and adversarial differences between two waveforms (`perceptual.py` has the rest).

Owns the loss formulas and how their gradients are balanced; knows neither the codec nor the schedule.
Shapes: a, b (B, S) float32 waveforms at 16 kHz, a the recording and b its reconstruction.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (window, mel bands); the hop is a quarter of the window (Descript audio codec, section 3.4)
MEL_SCALES = ((64, 8), (128, 16), (256, 32), (512, 64), (1024, 80), (2048, 96))
COMPLEX_WINDOWS = (256, 512, 1024)


def mel_filters(window: int, bands: int, sample_rate: int) -> Tensor:
    """Triangles between points evenly spaced on the mel scale: (bands, window / 2 + 1)."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    points = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, window // 2 + 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    return torch.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)).clamp_min(0)


class ReconstructionLoss(nn.Module):
    """Multi-scale log-mel L1 and relative complex-STFT L1."""

    def __init__(self, sample_rate: int = 16_000) -> None:
        super().__init__()
        for window, bands in MEL_SCALES:
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)
            self.register_buffer(f"mel_{window}", mel_filters(window, bands, sample_rate), persistent=False)

    def forward(self, recorded_BS: Tensor, decoded_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(mel loss in log10 units, complex loss relative to the recording's mean magnitude), both scalars."""
        mel = spectrum = recorded_BS.new_zeros(())
        both = torch.stack([recorded_BS, decoded_BS])
        for window, _ in MEL_SCALES:
            spectra = stft(both.flatten(0, 1), getattr(self, f"window_{window}")).unflatten(0, both.shape[:2])
            magnitudes = spectra.abs()
            log_mel = (getattr(self, f"mel_{window}") @ magnitudes).clamp_min(1e-5).log10()
            mel = mel + (log_mel[0] - log_mel[1]).abs().mean()
            if window in COMPLEX_WINDOWS:
                spectrum = spectrum + (spectra[0] - spectra[1]).abs().mean() / magnitudes[0].mean().clamp_min(1e-5)
        return mel / len(MEL_SCALES), spectrum / len(COMPLEX_WINDOWS)


def stft(samples_BS: Tensor, window: Tensor, hop: int | None = None) -> Tensor:
    """Centred complex spectra (B, window / 2 + 1, frames); the hop is a quarter of the window unless given."""
    return torch.stft(samples_BS, len(window), hop or len(window) // 4, window=window, return_complex=True, pad_mode="constant")


class GradientBalance(nn.Module):
    """Adds up the gradients of several losses in given proportions, whatever the losses' own sizes (EnCodec, section 3.4).

    The first loss keeps its gradient times its weight; every other one's is scaled to `share` times the norm of that, by moving means
    of the norms. So a share says what a loss counts for, from the first step to the last.
    """

    norms: Tensor

    def __init__(self, anchor: str, weight: float, shares: dict[str, float], decay: float = 0.99) -> None:
        super().__init__()
        self.names, self.weights, self.decay = [anchor, *shares], [weight, *shares.values()], decay
        self.register_buffer("norms", torch.zeros(2, len(self.names)))  # moving sums of the norms, and of the steps they were seen in

    def forward(self, losses: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """The combined gradient with respect to `inputs`; losses without a weight, and names that are absent, count for nothing."""
        wanted = [name for name in self.names if name in losses and self.weights[self.names.index(name)] > 0]
        gradients = {name: torch.autograd.grad(losses[name], inputs, retain_graph=True)[0] for name in wanted}
        for name, gradient in gradients.items():
            seen = self.norms[:, self.names.index(name)]
            seen.mul_(self.decay).add_(torch.stack([gradient.norm(), torch.ones_like(seen[0])]), alpha=1 - self.decay)
        size = self.norms[0] / self.norms[1].clamp_min(1e-12)
        total = torch.zeros_like(inputs)
        for name, gradient in gradients.items():
            index = self.names.index(name)
            scale = 1.0 if index == 0 else size[0] / size[index].clamp_min(1e-12)
            total = total + gradient * (scale * self.weights[index] * (1 if index == 0 else self.weights[0]))
        return total


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Hinge loss, mean over discriminators."""
    return sum(F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(real, fake)) / len(real)


def adversarial_loss(fake: list[Tensor]) -> Tensor:
    """What the codec wants of the discriminators' verdicts."""
    return -sum(verdict.mean() for verdict in fake) / len(fake)


def feature_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Relative L1 between the discriminators' inner layers on recording and reconstruction."""
    total, count = real[0][0].new_zeros((), dtype=torch.float32), 0
    for reals, fakes in zip(real, fake):
        for a, b in zip(reals, fakes):
            a = a.detach().float()
            total, count = total + (a - b.float()).abs().mean() / a.abs().mean().clamp_min(1e-5), count + 1
    return total / count
