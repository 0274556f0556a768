"""What the codec is trained to make small: spectral, loudness and adversarial differences between two waveforms.

Owns the loss formulas; knows neither the codec nor the schedule.
Shapes: a, b (B, S) float32 waveforms at 16 kHz, a the recording and b its reconstruction.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (window, mel bands); the hop is a quarter of the window (Descript audio codec, section 3.4)
MEL_SCALES = ((64, 8), (128, 16), (256, 32), (512, 64), (1024, 80), (2048, 96))
COMPLEX_WINDOWS = (256, 512, 1024)
BARK_BANDS = 49


def mel_filters(window: int, bands: int, sample_rate: int) -> Tensor:
    """Triangles between points evenly spaced on the mel scale: (bands, window / 2 + 1)."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    return _triangles(700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1), window, sample_rate)


def bark_filters(window: int, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Triangles evenly spaced on the Bark scale (Traunmueller 1990), and the hearing threshold at their peaks.

    (BARK_BANDS, window / 2 + 1), and (BARK_BANDS, 1) power by Terhardt's (1979) formula, where 0 dB SPL is 1.
    """
    top = 26.81 * (sample_rate / 2) / (1960 + sample_rate / 2) - 0.53
    bark = torch.linspace(0, top, BARK_BANDS + 2)
    points = 1960 * (bark + 0.53) / (26.28 - bark)
    khz = points[1:-1, None] / 1000
    threshold_db = 3.64 * khz**-0.8 - 6.5 * torch.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4
    return _triangles(points, window, sample_rate), 10 ** (threshold_db / 10)


def _triangles(points_hz: Tensor, window: int, sample_rate: int) -> Tensor:
    frequencies = torch.linspace(0, sample_rate / 2, window // 2 + 1)
    low, centre, high = points_hz[:-2, None], points_hz[1:-1, None], points_hz[2:, None]
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


class LoudnessLoss(nn.Module):
    """Difference in perceived loudness on the Bark scale, after the disturbance measures of ITU-T P.862.

    Power in 49 Bark bands (window 512) -> Zwicker's loudness -> |difference| minus a dead zone of a quarter of the
    smaller loudness; what was added counts more than what was lost (P.862's asymmetry factor).
    """

    LEVEL = 10**7.9  # clips are scaled to this power: P.862's listening level of 79 dB SPL
    SONE = 0.187  # P.862's scale of loudness at 16 kHz

    def __init__(self, sample_rate: int = 16_000, window: int = 512) -> None:
        super().__init__()
        filters, threshold = bark_filters(window, sample_rate)
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("threshold", threshold, persistent=False)

    def forward(self, recorded_BS: Tensor, decoded_BS: Tensor) -> Tensor:
        """Mean disturbance per band and frame, scalar, in sone."""
        power = stft(torch.cat([recorded_BS, decoded_BS]), self.window, hop=len(self.window) // 2)
        recorded, decoded = (power.real.square() + power.imag.square()).chunk(2)
        scale = self.LEVEL / recorded.sum(1).mean(1).clamp_min(1e-3)  # of each clip; a silent one is not blown up
        recorded, decoded = ((self.filters @ part) * scale[:, None, None] for part in (recorded, decoded))
        loud_a, loud_b = self._loudness(recorded), self._loudness(decoded)
        difference = loud_b - loud_a
        disturbance = (difference.abs() - 0.25 * torch.minimum(loud_a, loud_b).detach()).clamp_min(0)
        ratio = ((decoded + 50) / (recorded + 50)) ** 1.2
        asymmetry = torch.where(ratio < 3, torch.zeros_like(ratio), ratio.clamp(max=12)).detach()
        return (disturbance * (0.1 + 0.03 * asymmetry)).mean()

    def _loudness(self, power: Tensor) -> Tensor:
        threshold = self.threshold
        return self.SONE * (threshold / 0.5) ** 0.23 * ((0.5 + 0.5 * power / threshold) ** 0.23 - 1).clamp_min(0)


def stft(samples_BS: Tensor, window: Tensor, hop: int | None = None) -> Tensor:
    """Centred complex spectra (B, window / 2 + 1, frames); the hop is a quarter of the window unless given."""
    return torch.stft(samples_BS, len(window), hop or len(window) // 4, window=window, return_complex=True, pad_mode="constant")


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
