"""Is it the same voice? Cosine similarity of speaker embeddings: the GE2E encoder that the package Resemblyzer carries (Wan et al. 2018).

The encoder's mathematics is written out here (three LSTM layers over mel frames, partial utterances of 1.6 s averaged), so that neither
librosa nor webrtcvad is needed: of the package its weights alone are read, without unpickling code.
"""

from functools import cache
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import nn

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE

WINDOW, HOP, MELS = 400, 160, 40
PARTIAL_FRAMES, PARTIAL_STEP = 160, 77  # 1.6 s, 1.3 partial utterances a second
MIN_COVERAGE = 0.75  # of the last partial utterance by sound
TARGET_DB = -30.0  # quieter clips are raised to it
INSTALL = "python -m pip install --no-deps Resemblyzer==0.1.4, or other --measures"


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the embeddings of samples (S,) at 16 kHz: 1 for the same voice, 0.5 to 0.7 for two voices."""
    return float(embedding(a) @ embedding(b))


def embedding(samples: np.ndarray) -> np.ndarray:
    """(256,) float32 of length 1.

    Raises:
        UserError: Resemblyzer is not installed.
    """
    frames_T40 = _mel(_raised(samples.astype(np.float32)))
    steps = range(0, max(1, ceil((len(samples) + 1) / HOP) - PARTIAL_FRAMES + PARTIAL_STEP + 1), PARTIAL_STEP)
    starts = [start for start in steps if start == 0 or len(samples) - start * HOP >= MIN_COVERAGE * PARTIAL_FRAMES * HOP]
    missing = max(0, starts[-1] + PARTIAL_FRAMES - len(frames_T40))
    frames_T40 = np.pad(frames_T40, ((0, missing), (0, 0)))
    partials = np.stack([frames_T40[start : start + PARTIAL_FRAMES] for start in starts])
    with torch.inference_mode():
        mean = _encoder()(torch.from_numpy(partials)).mean(dim=0)
        return torch.nn.functional.normalize(mean, dim=0).numpy()


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mel_BTM: torch.Tensor) -> torch.Tensor:
        """(B, T, 40) -> (B, 256), each of length 1."""
        _, (hidden, _) = self.lstm(mel_BTM)
        return torch.nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


@cache
def _encoder() -> _Encoder:
    spec = find_spec("resemblyzer")
    if spec is None or spec.origin is None:
        raise UserError("speaker similarity needs the weights in the package Resemblyzer, which is not installed", remedy=INSTALL)
    state = torch.load(Path(spec.origin).parent / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
    encoder = _Encoder()
    encoder.load_state_dict({name: value for name, value in state.items() if not name.startswith("similarity")})
    return encoder.eval()


def _raised(samples: np.ndarray) -> np.ndarray:
    level = 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12)
    return samples * np.float32(10 ** (max(0.0, TARGET_DB - level) / 20))


def _mel(samples: np.ndarray) -> np.ndarray:
    """(T, 40) float32 power, frames centred, as librosa makes them."""
    spectrum = torch.stft(
        torch.from_numpy(samples), WINDOW, HOP, window=torch.hann_window(WINDOW), center=True, pad_mode="constant", return_complex=True
    )
    return (torch.from_numpy(_filters()) @ spectrum.abs().square()).T.numpy()


@cache
def _filters() -> np.ndarray:
    """(40, 201) triangles of area 1 on Slaney's mel scale (linear to 1 kHz, then logarithmic), 0 to 8 kHz."""
    breaks, step = 15.0, np.log(6.4) / 27.0  # 1 kHz is mel 15

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < breaks, mel * 200 / 3, 1000 * np.exp(step * (mel - breaks)))

    edges = to_hz(np.linspace(0, breaks + np.log(SAMPLE_RATE / 2 / 1000) / step, MELS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    weights = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return weights.astype(np.float32)
