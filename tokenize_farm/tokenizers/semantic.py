"""View `semantic`, embedded default: k-means units of cepstra, (T,) uint16 at 50 frames/s.

Features of a frame: 13 mel cepstra with the clip's mean removed, and their first and second slopes over 9 frames, each scaled to
unit variance over the recordings of the fit (39 numbers). The mean takes most of the channel and some of the speaker with it; units
still carry more of the speaker than HuBERT's (hubert.py is the paper's own). The 500 centres are fitted on real recordings by
`uniaudio tokenize fit-semantic`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.configs.load import validate
from uniaudio.configs.section import Section
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.tokenizers.protocol import SAMPLES_PER_FRAME, VOICED_KINDS, Clip, num_frames
from uniaudio.tokenize_farm.tokenizers.resources import UnitCodebook, digest

SHIPPED = Path(__file__).parent / "data" / "semantic_500.safetensors"
FEATURES = "cepstra-slopes-39"
NUM_UNITS = 500
_FFT, _BANDS, _CEPSTRA, _REACH = 640, 40, 13, 4


class SemanticOptions(Section):
    """centroids: a file of `uniaudio tokenize fit-semantic`; the shipped one unless given."""

    centroids: str | None = None


class SemanticTokenizer:
    """name `semantic`."""

    name, view = "semantic", "semantic"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = validate(SemanticOptions, dict(options), source="tokenizer semantic")
        path = Path(self.options.centroids).expanduser() if self.options.centroids else SHIPPED
        self._codebook = UnitCodebook(path, features=FEATURES)
        self.version = digest(path, FEATURES)

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """(T,) uint16 for speech and singing, else None."""
        return [self._codebook.nearest(features(clip.samples)) if clip.row.kind in VOICED_KINDS else None for clip in clips]


def features(samples: np.ndarray) -> np.ndarray:
    """Samples (S,) at 16 kHz -> (T, 39) float32, T = ceil(S / 320), frame t centred at 320 t + 160."""
    frames = num_frames(samples)
    side = (_FFT - SAMPLES_PER_FRAME) // 2
    padded = np.pad(samples.astype(np.float32), (side, frames * SAMPLES_PER_FRAME - len(samples) + side))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::SAMPLES_PER_FRAME]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(_FFT).astype(np.float32), axis=1)))
    log_mel = np.log(power @ _mel_filters().T + 1e-5)
    cepstra = log_mel @ _cosines().T
    cepstra -= cepstra.mean(axis=0)
    slopes = _slopes(cepstra)
    return np.concatenate([cepstra, slopes, _slopes(slopes)], axis=1).astype(np.float32)


def _slopes(rows_TC: np.ndarray) -> np.ndarray:
    """Least-squares slope of each column over 2 * _REACH + 1 rows, the ends repeated."""
    steps = np.arange(-_REACH, _REACH + 1)
    padded = np.pad(rows_TC, ((_REACH, _REACH), (0, 0)), mode="edge")
    return np.tensordot(np.lib.stride_tricks.sliding_window_view(padded, len(steps), axis=0), steps / np.square(steps).sum(), axes=1)


@cache
def _mel_filters() -> np.ndarray:
    """(bands, bins) triangles, evenly spaced on the mel scale from 60 Hz to 7600 Hz."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (60.0, 7600.0))
    mels = np.linspace(low, high, _BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)


@cache
def _cosines() -> np.ndarray:
    """(cepstra, bands): the first rows of the orthonormal DCT-II."""
    k, n = np.arange(_CEPSTRA)[:, None], np.arange(_BANDS)[None]
    rows = np.cos(np.pi * k * (2 * n + 1) / (2 * _BANDS)) * np.sqrt(2 / _BANDS)
    rows[0] /= np.sqrt(2)
    return rows
