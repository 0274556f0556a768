"""Distances between a recording and its copy that need no model: mel, multi-resolution STFT, SI-SDR."""

import numpy as np
import torch

from uniaudio.tokenize_farm.codec.losses import ReconstructionLoss, stft

STFT_WINDOWS = (512, 1024, 2048)


def distances(recorded: np.ndarray, copy: np.ndarray) -> dict[str, float]:
    """{"mel", "stft", "si_sdr"} of (S,) against (S,): mel and stft are better when lower, SI-SDR (dB) when higher."""
    a, b = (torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))[None] for x in (recorded, copy))
    with torch.inference_mode():
        mel, _ = ReconstructionLoss()(a, b)
        return {"mel": float(mel), "stft": _stft_distance(a, b), "si_sdr": si_sdr(recorded, copy)}


def si_sdr(recorded: np.ndarray, copy: np.ndarray) -> float:
    """Scale-invariant signal to distortion ratio in dB (Le Roux et al. 2019), means removed; at most 120 and at least -120."""
    a, b = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (recorded, copy))
    target = a * (a @ b) / max(float(a @ a), 1e-12)
    error = b - target
    ratio = max(float(target @ target), 1e-12) / max(float(error @ error), 1e-12)
    return float(np.clip(10 * np.log10(ratio), -120, 120))


def _stft_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean of spectral convergence and log-magnitude L1 over three windows (Parallel WaveGAN, section 2.2)."""
    total = 0.0
    for size in STFT_WINDOWS:
        x, y = (stft(signal, torch.hann_window(size)).abs().clamp_min(1e-5) for signal in (a, b))
        total += float((x - y).norm() / x.norm() + (x.log() - y.log()).abs().mean())
    return total / len(STFT_WINDOWS)
