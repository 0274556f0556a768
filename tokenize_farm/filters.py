"""Which decoded clips are kept. Each refusal is a BadAudio with its reason; what is measured depends on the clip alone.

Owns the measures of noise and quality; the bounds are `FilterConfig`'s. Samples (S,) float32 mono at 16 kHz.
"""

import numpy as np

from uniaudio.configs.farm import FilterConfig
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, BadAudio
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.measures.speech import dnsmos

_FRAME = 320  # samples of 20 ms
_QUIET, _LOUD = 5, 95  # percentiles of frame energy


def check_row(row: ManifestRow, filters: FilterConfig) -> None:
    """Raises BadAudio where the row alone says that the clip is unwanted."""
    if filters.languages is not None and row.kind in ("speech", "singing") and row.language not in filters.languages:
        raise BadAudio("language", f"{row.language or 'no language given'}; filters.languages is {', '.join(filters.languages)}")


def check_clip(samples: np.ndarray, filters: FilterConfig, *, kind: str = "speech") -> None:
    """Raises BadAudio for samples outside the config's bounds; noise and quality are asked of speech only."""
    seconds = len(samples) / SAMPLE_RATE
    if seconds < filters.min_seconds:
        raise BadAudio("too_short", f"{seconds:.2f} s; filters.min_seconds is {filters.min_seconds:g}")
    if seconds > filters.max_seconds:
        raise BadAudio("too_long", f"{seconds:.1f} s; filters.max_seconds is {filters.max_seconds:g}")
    quick = 10 * np.log10(np.einsum("i,i", samples, samples) / len(samples) + 1e-12)  # in float32: less than half of the time
    if quick < filters.min_rms_db + 1 and (level := _level_db(samples)) < filters.min_rms_db:
        raise BadAudio("silent", f"{level:.0f} dB; filters.min_rms_db is {filters.min_rms_db:g}")
    if kind != "speech":
        return
    if filters.min_snr_db is not None and (snr := snr_db(samples)) < filters.min_snr_db:
        raise BadAudio("noisy", f"{snr:.1f} dB; filters.min_snr_db is {filters.min_snr_db:g}")
    if filters.min_dnsmos is not None and (score := dnsmos(samples)["overall"]) < filters.min_dnsmos:
        raise BadAudio("poor", f"DNSMOS {score:.2f}; filters.min_dnsmos is {filters.min_dnsmos:g}")


def _level_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12))


def snr_db(samples: np.ndarray) -> float:
    """An estimate of the ratio of speech to noise: energy of the loud frames (95th percentile) over that of the quiet ones (5th), in dB.

    The quiet frames of speech are its pauses, so this is the noise floor; it says little of clips without a pause, and is at most 100.
    """
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME).astype(np.float64)
    energy = np.square(frames).mean(axis=1)
    quiet, loud = np.percentile(energy, [_QUIET, _LOUD])
    return float(min(100.0, 10 * np.log10((loud + 1e-12) / (quiet + 1e-12))))
