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


def louder_loss(recorded_BS: Tensor, decoded_BS: Tensor) -> Tensor:
    """Mean square of how much louder than in the recording a moment of 20 ms is, in nepers of power beyond 0.35 (1.5 dB); scalar.

    Log-mel distances are means over frames and forgive one frame that bursts; this does not. Nothing below -60 dB counts.
    """
    recorded, decoded = (F.avg_pool1d(x.square()[:, None], 320, 160) + 1e-6 for x in (recorded_BS, decoded_BS))
    return F.relu((decoded / recorded).log() - 0.35).square().mean()


def stft(samples_BS: Tensor, window: Tensor, hop: int | None = None) -> Tensor:
    """Centred complex spectra (B, window / 2 + 1, frames); the hop is a quarter of the window unless given."""
    return torch.stft(samples_BS, len(window), hop or len(window) // 4, window=window, return_complex=True, pad_mode="constant")


class GradientBalance(nn.Module):
    """Adds up the gradients of several losses in given proportions, whatever the losses' own sizes (after EnCodec, section 3.4).

    The first loss keeps its gradient times its weight; every other one's is scaled to `share` times its size. The size of a loss is the
    geometric mean of its gradient's norms over the clips it says something of, in a moving mean: a clip of near silence, where the log
    of the mel loss is a thousand times as steep, neither sets the scale nor, limited to LIMIT sizes, drowns the other clips.
    """

    LIMIT = 4.0
    sizes: Tensor

    def __init__(self, anchor: str, weight: float, shares: dict[str, float], decay: float = 0.99) -> None:
        super().__init__()
        self.names, self.weights, self.decay = [anchor, *shares], [weight, *(weight * share for share in shares.values())], decay
        self.register_buffer("sizes", torch.zeros(2, len(self.names)))  # moving sums of the sizes, and of the steps they were seen in

    def forward(self, losses: dict[str, Tensor], inputs_BS: Tensor, only: dict[str, Tensor] | None = None) -> Tensor:
        """The combined gradient with respect to `inputs_BS`; losses without a weight, and names that are absent, count for nothing.

        `only`: by name, which clips (B,) a loss may move; P.862 and STOI judge voices, and spoil other sounds.
        """
        wanted = [index for index, name in enumerate(self.names) if name in losses and self.weights[index] > 0]
        gradients = {index: torch.autograd.grad(losses[self.names[index]], inputs_BS, retain_graph=True)[0] for index in wanted}
        for index in wanted:
            if only is not None and self.names[index] in only:
                gradients[index] = gradients[index] * only[self.names[index]][:, None]
        norms = {index: gradient.norm(dim=1) for index, gradient in gradients.items()}
        for index, norm_B in norms.items():
            seen = self.sizes[:, index]
            seen.mul_(self.decay).add_(torch.stack([_typical(norm_B), torch.ones_like(seen[0])]), alpha=1 - self.decay)
        size = self.sizes[0] / self.sizes[1].clamp_min(1e-12)
        total = torch.zeros_like(inputs_BS)
        for index, gradient in gradients.items():
            limited = (self.LIMIT * size[index] / norms[index].clamp_min(1e-30)).clamp(max=1)
            scale = self.weights[index] * (1.0 if index == 0 else size[0] / size[index].clamp_min(1e-30))
            total = total + gradient * (limited * scale)[:, None]
        return total


def _typical(norms_B: Tensor) -> Tensor:
    """Geometric mean of the entries that are not 0; 0 where all are."""
    counted = (norms_B > 0).float()
    return ((norms_B.clamp_min(1e-30).log() * counted).sum() / counted.sum().clamp_min(1)).exp() * counted.amax()


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
