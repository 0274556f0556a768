"""Multi-scale complex-STFT discriminators (EnCodec, section 3.4): convolutions over time and frequency.

Used in training only. Shapes: waveforms (B, S) -> per scale a map of verdicts and the list of inner layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from uniaudio.tokenize_farm.codec.losses import stft


class ScaleDiscriminator(nn.Module):
    """Real and imaginary part of one STFT -> verdicts; strides run over frequency, dilation over time."""

    window: Tensor

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.layers = nn.ModuleList([_conv(2, channels, stride=2)])
        self.layers.extend(_conv(channels, channels, stride=2, dilation=2**i) for i in range(3))
        self.layers.append(_conv(channels, channels))
        self.verdict = _conv(channels, 1)

    def forward(self, samples_BS: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Verdicts float32, and every layer's output (channels last in memory)."""
        spectra = stft(samples_BS, self.window) * (2.0 / self.window.sum() * len(self.window) ** 0.5)
        hidden = torch.stack([spectra.real, spectra.imag], 1).transpose(2, 3).contiguous(memory_format=torch.channels_last)
        inner = []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), 0.2)
            inner.append(hidden)
        return self.verdict(hidden).float(), inner


def _conv(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Module:
    kernel = (3, 9) if stride > 1 else (3, 3)
    padding = (dilation, kernel[1] // 2)
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride=(1, stride), dilation=(dilation, 1), padding=padding))


class Discriminators(nn.Module):
    """One discriminator a window length."""

    def __init__(self, windows: list[int], channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ScaleDiscriminator(window, channels) for window in windows)

    def forward(self, samples_BS: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Verdicts and inner layers, one entry a scale."""
        results = [scale(samples_BS) for scale in self.scales]
        return [verdict for verdict, _ in results], [inner for _, inner in results]
