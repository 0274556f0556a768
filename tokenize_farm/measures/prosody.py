"""How near is a spoken or sung copy with a timing of its own? Cepstra and pitch, compared along the path that warps one onto the other."""

import math

import numpy as np
import torch

from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.measures.packages import need

WINDOW, HOP = 1024, 160  # a frame each 10 ms
CEPSTRA = 13  # c1..c13: c0 is loudness
_DB = 10 / math.log(10) * math.sqrt(2)


def mel_cepstral_distortion(recorded: np.ndarray, copy: np.ndarray) -> float:
    """MCD in dB over c1..c13 (Kubichek 1993), mean along the warping path; 0 for equal clips. NaN where a clip has no frame."""
    a, b = _cepstra(recorded), _cepstra(copy)
    path = warp(a, b)
    return float(np.mean([_DB * np.linalg.norm(a[i] - b[j]) for i, j in path])) if path else math.nan


def f0_correlation(recorded: np.ndarray, copy: np.ndarray) -> float:
    """Pearson correlation of log F0 where both are voiced along the warping path; NaN where they are under ten, or one is constant."""
    path = warp(_cepstra(recorded), _cepstra(copy))
    f0 = [_f0(samples) for samples in (recorded, copy)]
    pairs = [(f0[0][i], f0[1][j]) for i, j in path if i < len(f0[0]) and j < len(f0[1])]
    voiced = np.log([pair for pair in pairs if min(pair) > 0]) if pairs else np.zeros((0, 2))
    if len(voiced) < 10 or (voiced.std(axis=0) < 1e-6).any():
        return math.nan
    return float(np.corrcoef(voiced.T)[0, 1])


def warp(a_TC: np.ndarray, b_UC: np.ndarray) -> list[tuple[int, int]]:
    """Dynamic time warping: the path of pairs (t, u) of least summed Euclidean distance, from both beginnings to both ends."""
    if not len(a_TC) or not len(b_UC):
        return []
    cost = torch.cdist(torch.from_numpy(a_TC)[None].double(), torch.from_numpy(b_UC)[None].double())[0].numpy()
    total = np.full((len(a_TC) + 1, len(b_UC) + 1), np.inf)
    total[0, 0] = 0
    for t in range(len(a_TC)):
        above = np.minimum(total[t, :-1], total[t, 1:])
        row, left = total[t + 1], math.inf
        for u, (best, here) in enumerate(zip(above.tolist(), cost[t].tolist())):
            left = here + min(best, left)
            row[u + 1] = left
    t, u = len(a_TC), len(b_UC)
    path = [(t - 1, u - 1)]
    while (t, u) != (1, 1):
        t, u = min(((t - 1, u - 1), (t - 1, u), (t, u - 1)), key=lambda at: total[at])
        path.append((t - 1, u - 1))
    return path[::-1]


def _cepstra(samples: np.ndarray) -> np.ndarray:
    """(T, 13) float32: discrete cosine transform of log mel power, 10 ms a frame."""
    if len(samples) < WINDOW:
        return np.zeros((0, CEPSTRA), np.float32)
    signal = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    power = torch.stft(signal, WINDOW, HOP, window=torch.hann_window(WINDOW), center=False, return_complex=True).abs().square()
    mel = 80
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700), mel + 2) / 2595) - 1)
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    rising, falling = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None], (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    log_mel = (torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32)) @ power + 1e-8).log() / 2
    places = (np.arange(mel) + 0.5) * np.pi / mel
    basis = np.cos(np.arange(1, CEPSTRA + 1)[:, None] * places) * math.sqrt(2 / mel)
    return (torch.from_numpy(basis.astype(np.float32)) @ log_mel).T.numpy() / math.sqrt(mel)


def _f0(samples: np.ndarray) -> np.ndarray:
    """Hz at the middle of each 10 ms frame of `_cepstra`; 0 where unvoiced."""
    pyworld = need("pyworld", needed_for="F0 correlation")
    middle = WINDOW // 2 // HOP
    f0, _ = pyworld.dio(samples.astype(np.float64), SAMPLE_RATE, frame_period=1000 * HOP / SAMPLE_RATE)
    return f0[middle:]
