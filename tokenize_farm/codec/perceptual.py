"""What ears make of a difference, as losses: quality after ITU-T P.862 (PESQ), intelligibility after Taal et al. 2011 (STOI).

Owns both formulas in torch, with gradients and fixed shapes (a captured step can hold them). Left out of P.862: the time alignment
(a codec's output is aligned) and the repair of badly aligned stretches. Shapes: B clips, S samples at 16 kHz, T frames, Z Bark bands,
N third-octave bands. Everything is computed in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniaudio.tokenize_farm.codec.losses import stft

SAMPLE_RATE = 16_000

# P.862, 16 kHz: bins of 31.25 Hz in each of 49 Bark bands (the first bin belongs to the first band), the power correction of each band,
# its hearing threshold, width and centre in Bark
BINS = (1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 3, 4, 5, 4, 5, 6, 6, 7, 8, 9, 9, 12, 12,
        15, 16, 18, 21, 25, 20)  # fmt: skip
CORRECTION = (
    100.0, 99.999992, 100.0, 100.000008, 100.000008, 100.000015, 99.999992, 99.999969, 50.000027, 100.0, 99.999969, 100.000015, 99.999947,
    100.000061, 53.047077, 110.000046, 117.991989, 65.0, 68.760147, 69.999931, 71.428818, 75.000038, 76.843384, 80.968781, 88.646126,
    63.864388, 68.15535, 72.547775, 75.584831, 58.379192, 80.950836, 64.135651, 54.384785, 73.821884, 64.437073, 59.176456, 65.521278,
    61.399822, 58.144047, 57.004543, 64.126297, 54.311001, 61.114979, 55.077751, 56.849335, 55.628868, 53.137054, 54.985844, 79.546974,
)  # fmt: skip
THRESHOLD = (
    51286152.0, 2454709.5, 70794.59375, 4897.788574, 1174.897705, 389.045166, 104.71286, 45.70882, 17.782795, 9.772372, 4.897789, 3.090296,
    1.905461, 1.258925, 0.977237, 0.724436, 0.562341, 0.457088, 0.389045, 0.331131, 0.295121, 0.269153, 0.25704, 0.251189, 0.251189,
    0.251189, 0.251189, 0.263027, 0.288403, 0.30903, 0.338844, 0.371535, 0.398107, 0.436516, 0.467735, 0.489779, 0.501187, 0.501187,
    0.512861, 0.524807, 0.524807, 0.524807, 0.512861, 0.47863, 0.42658, 0.371535, 0.363078, 0.416869, 0.537032,
)  # fmt: skip
WIDTH = (
    0.157344, 0.317994, 0.322441, 0.326934, 0.331474, 0.336061, 0.340697, 0.345381, 0.350114, 0.354897, 0.359729, 0.364611, 0.369544,
    0.374529, 0.379565, 0.384653, 0.389794, 0.394989, 0.400236, 0.405538, 0.410894, 0.416306, 0.421773, 0.427297, 0.432877, 0.438514,
    0.444209, 0.449962, 0.455774, 0.461645, 0.467577, 0.473569, 0.479621, 0.485736, 0.491912, 0.498151, 0.504454, 0.510819, 0.51725,
    0.523745, 0.530308, 0.536934, 0.543629, 0.55039, 0.55722, 0.564119, 0.571085, 0.578125, 0.585232,
)  # fmt: skip
POWER_SCALE, LOUDNESS_SCALE = 6.910853e-006, 1.866055e-001  # of 16-bit samples at the listening level, P.862 for 16 kHz
LISTENING_POWER = 1e7  # mean square of 16-bit samples, 350 to 3250 Hz, that both signals are brought to
QUIET_POWER = 100.0  # added to it: a clip below about -70 dB is not blown up
WIDEBAND_FILTER = ((2.6657628, -5.3315255, 2.6657628), (1.0, -1.8890331, 0.89487434))  # P.862.2: high-pass at the input, b and a
SYLLABLE, SYLLABLE_STEP = 20, 10  # frames


class QualityLoss(nn.Module):
    """How much worse than perfect PESQ-wb would call the copy, before its last curve: 0 for an equal copy, 3.5 for a very bad one."""

    def __init__(self, window: int = 512) -> None:
        super().__init__()
        buffers = {
            "window": torch.hann_window(window),
            "bands": _bark_bands(window),
            "threshold": torch.tensor(THRESHOLD)[:, None],
            "width": torch.tensor(WIDTH)[:, None],
            "exponent": _loudness_exponent()[:, None],
            "response": _filter_response(window),
            "speech": _speech_bins(window),
            "memory": (0.8 * 0.2 ** torch.arange(8.0)).flip(0)[None, None],
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, recorded_BS: Tensor, copy_BS: Tensor) -> Tensor:
        """Mean of `disturbance` over the clips, scalar."""
        return self.disturbance(recorded_BS, copy_BS).mean()

    def mos(self, recorded_BS: Tensor, copy_BS: Tensor) -> Tensor:
        """(B,): the estimate of PESQ-wb (P.862.2's curve), 1.04 to 4.64, of a copy as loud as the recording: another level costs."""
        return 0.999 + 4 / (1 + torch.exp(-1.3669 * (4.5 - self.disturbance(recorded_BS, copy_BS)) + 3.8224))

    def disturbance(self, recorded_BS: Tensor, copy_BS: Tensor) -> Tensor:
        """(B,): 0.1 x the symmetric + 0.0309 x the asymmetric disturbance of each clip (P.862, sections 10.2.8 to 10.2.13)."""
        recorded, copy = self._bark_powers(recorded_BS, copy_BS)
        recorded = recorded * self._response_ratio(recorded.detach(), copy.detach())
        copy = copy * self._gain_ratio(recorded.detach(), copy.detach())
        loud_a, loud_b = self._loudness(recorded), self._loudness(copy)
        difference = loud_b - loud_a
        masked = difference.sign() * (difference.abs() - 0.25 * torch.minimum(loud_a, loud_b)).clamp_min(0)
        ratio = ((copy + 50) / (recorded + 50)) ** 1.2
        asymmetry = torch.where(ratio < 3, 0.0, ratio.clamp(max=12.0))
        both = (masked.abs() * self.width)[:, 1:]  # the lowest band does not count
        total = self.width[1:].sum()
        symmetric = (both.square().sum(1) / total + 1e-12).sqrt() * total
        asymmetric = (both * asymmetry[:, 1:]).sum(1)
        audible = (recorded * (recorded > self.threshold)).sum(1).detach()
        weight = ((audible + 1e5) / 1e7) ** 0.04
        return 0.1 * _over_time(_ceiling(symmetric / weight)) + 0.0309 * _over_time(_ceiling(asymmetric / weight))

    def _bark_powers(self, recorded_BS: Tensor, copy_BS: Tensor) -> list[Tensor]:
        """(B, Z, T) powers after the input filter, the recording at the listening level and the copy as much louder or softer as it is.

        P.862 brings the copy to that level by its own power. A decoder that is trained so learns to burst for 20 ms at a clip's first
        sound: the burst holds most of the power, and the rest of the clip can have any level (docs/codec/training.md).
        """
        spectra = [stft(samples * 32_768, self.window, hop=len(self.window) // 2) for samples in (recorded_BS, copy_BS)]
        powers = [spectrum.real.square() + spectrum.imag.square() for spectrum in spectra]
        spoken = (powers[0] * self.speech).sum(1).mean(1) / (len(self.window) * self.window.square().sum() / 2)  # Parseval: a mean square
        scale = POWER_SCALE * LISTENING_POWER / (spoken + QUIET_POWER)
        return [self.bands @ (power * self.response) * scale[:, None, None] for power in powers]

    def _response_ratio(self, recorded: Tensor, copy: Tensor) -> Tensor:
        """(B, Z, 1): how the copy's mean spectrum differs, for frames that are not silent; a steady colouring disturbs less."""
        active = ((recorded * (recorded > self.threshold * 100)).sum(1, keepdim=True) > 1e7).float()
        audible_a, audible_b = (x * (x > self.threshold * 100) * active for x in (recorded, copy))
        count = active.sum(2, keepdim=True).clamp_min(1)
        return ((audible_b.sum(2, keepdim=True) / count + 1000) / (audible_a.sum(2, keepdim=True) / count + 1000)).clamp(0.01, 100)

    def _gain_ratio(self, recorded: Tensor, copy: Tensor) -> Tensor:
        """(B, 1, T): slow changes of level that the ear forgives, smoothed over frames before."""
        audible_a, audible_b = ((x * (x > self.threshold)).sum(1, keepdim=True) for x in (recorded, copy))
        ratio = (audible_a + 5e3) / (audible_b + 5e3)
        memory = self.memory.shape[-1]
        padded = F.pad(ratio, (memory - 1, 0), mode="replicate")
        return F.conv1d(padded, self.memory / self.memory.sum()).clamp(3e-4, 5)

    def _loudness(self, power: Tensor) -> Tensor:
        """Zwicker's law, in sone."""
        above = (power / self.threshold).clamp_min(1)
        return LOUDNESS_SCALE * (self.threshold / 0.5) ** self.exponent * ((0.5 + 0.5 * above) ** self.exponent - 1)


class IntelligibilityLoss(nn.Module):
    """1 - STOI: correlation of third-octave envelopes over 384 ms, frames of silence left out."""

    SILENCE = -60.0  # dB of a frame's norm: no sound in it, whatever the rest of the clip

    FRAME, HOP, SIZE, BANDS, LOWEST, LENGTH = 410, 205, 820, 15, 150.0, 30  # 25.6 ms as in the paper's 256 samples at 10 kHz

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(self.FRAME + 2, periodic=False)[1:-1]
        self.register_buffer("window", F.pad(window, (self.SIZE // 2 - self.FRAME // 2,) * 2), persistent=False)
        frequencies = torch.arange(self.SIZE // 2 + 1) * SAMPLE_RATE / self.SIZE
        centres = self.LOWEST * 2 ** (torch.arange(self.BANDS) / 3)
        low, high = (frequencies[(frequencies[None] - (centres * 2**e)[:, None]).abs().argmin(1)][:, None] for e in (-1 / 6, 1 / 6))
        self.register_buffer("bands", ((frequencies >= low) & (frequencies < high)).float(), persistent=False)

    def forward(self, recorded_BS: Tensor, copy_BS: Tensor) -> Tensor:
        """1 - mean STOI of the clips that have 30 frames of sound, scalar; 0 where none has."""
        value, known = self.stoi(recorded_BS, copy_BS)
        return ((1 - value) * known).sum() / known.sum().clamp_min(1)

    def stoi(self, recorded_BS: Tensor, copy_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(STOI, 1 where the clip is long enough) of each clip."""
        short = max(0, self.SIZE + (self.LENGTH - 1) * self.HOP - recorded_BS.shape[1])
        frames = [F.pad(x, (0, short)).unfold(-1, self.SIZE, self.HOP) * self.window for x in (recorded_BS, copy_BS)]
        energy = 20 * (frames[0].norm(dim=-1) + 1e-9).log10()
        loud = energy > (energy.amax(1, keepdim=True) - 40).clamp_min(self.SILENCE)
        count, order = loud.sum(1), _true_first(loud)
        a, b = (self._envelopes(x).gather(2, order[:, None].expand(-1, self.BANDS, -1)) for x in frames)
        a, b = (x.unfold(2, self.LENGTH, 1) for x in (a, b))  # (B, N, segments, 30)
        level = a.norm(dim=-1, keepdim=True) / (b.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        b = torch.minimum(b * level, a * (1 + 10 ** (15 / 20)))
        a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
        a, b = (x / (x.square().sum(-1, keepdim=True) + 1e-12).sqrt() for x in (a, b))
        correlation = (a * b).sum(-1).mean(1)  # (B, segments)
        valid = (torch.arange(correlation.shape[1], device=count.device) <= count[:, None] - self.LENGTH).float()
        return (correlation * valid).sum(1) / valid.sum(1).clamp_min(1), (valid.sum(1) > 0).float()

    def _envelopes(self, frames_BTW: Tensor) -> Tensor:
        """(B, N, T): magnitude of each third octave."""
        spectra = torch.fft.rfft(frames_BTW)
        power = spectra.real.square() + spectra.imag.square()
        return (self.bands @ power.transpose(1, 2) + 1e-12).sqrt()


def _true_first(chosen_BT: Tensor) -> Tensor:
    """(B, T): positions of the entries that are True, in their order, then those of the others (a stable sort that never waits)."""
    count = chosen_BT.sum(1, keepdim=True)
    place = torch.where(chosen_BT, chosen_BT.cumsum(1) - 1, count + (~chosen_BT).cumsum(1) - 1)
    positions = torch.arange(chosen_BT.shape[1], device=chosen_BT.device).expand_as(place)
    return torch.zeros_like(place).scatter(1, place, positions)


def _bark_bands(window: int) -> Tensor:
    """(49, window / 2 + 1): sums of bins times the correction; the last bin, half the sample rate, belongs to no band."""
    bands, first = torch.zeros(len(BINS), window // 2 + 1), 0
    for row, (size, factor) in enumerate(zip(BINS, CORRECTION)):
        bands[row, first : first + size] = factor
        first += size
    return bands


def _loudness_exponent() -> Tensor:
    """Zwicker's 0.23, steeper below 4 Bark."""
    width = torch.tensor(WIDTH)
    centre = width.cumsum(0) - width / 2
    steeper = torch.where(centre < 4, 6 / (centre + 2), 1.0).clamp(max=2) ** 0.15
    return 0.23 * steeper


def _filter_response(window: int) -> Tensor:
    """(window / 2 + 1, 1): power response of the wideband input filter."""
    angle = torch.exp(-1j * torch.linspace(0, math.pi, window // 2 + 1))
    above, below = (sum(c * angle**k for k, c in enumerate(side)) for side in WIDEBAND_FILTER)
    return (above / below).abs().square().float()[:, None]


def _speech_bins(window: int) -> Tensor:
    """(window / 2 + 1, 1): 1 between 350 and 3250 Hz, where the level is measured."""
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, window // 2 + 1)
    return ((frequencies >= 350) & (frequencies <= 3250)).float()[:, None]


def _ceiling(disturbance: Tensor) -> Tensor:
    """P.862 counts no frame beyond 45. A ceiling has no slope, and a decoder learned to let one frame of a clip burst for nothing more:
    what lies beyond goes on at a tenth."""
    return torch.where(disturbance < 45, disturbance, 45 + 0.1 * (disturbance - 45))


def _over_time(frames_BT: Tensor) -> Tensor:
    """(B,): syllables of 20 frames by the sixth-power mean, then the root mean square of the syllables."""
    padded = F.pad(frames_BT, (0, max(0, SYLLABLE - frames_BT.shape[1])))
    syllables = ((padded.unfold(1, SYLLABLE, SYLLABLE_STEP) + 1e-6) ** 6).mean(-1) ** (1 / 6)
    return syllables.square().mean(1).add(1e-12).sqrt()
