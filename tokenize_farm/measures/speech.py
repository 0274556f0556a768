"""Measures of speech: PESQ-wb and STOI against the recording, DNSMOS of a recording alone."""

import math
import warnings
from functools import cache
from typing import Any

import numpy as np

from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.measures.packages import need, package_folder

DNSMOS_SECONDS = 9.01  # what the model hears at once
# the model's three outputs -> mean opinion scores (speechmos 0.0.1.1, dnsmos.py)
DNSMOS_CURVES = {
    "signal": (-0.08397278, 1.22083953, 0.0052439),
    "background": (-0.13166888, 1.60915514, -0.39604546),
    "overall": (-0.06766283, 1.11546468, 0.04602535),
}


def pesq_wb(recorded: np.ndarray, copy: np.ndarray) -> float:
    """ITU-T P.862.2, 1.04 to 4.64; NaN where it finds no speech in the recording, or the clip is under a quarter of a second."""
    pesq = need("pesq", needed_for="PESQ")
    try:
        return float(pesq.pesq(SAMPLE_RATE, recorded, copy, "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return math.nan


def stoi(recorded: np.ndarray, copy: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), at most 1; NaN for a clip with less than 0.4 s of sound."""
    pystoi = need("pystoi", needed_for="STOI")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it warns of too few frames, and returns 1e-5
        value = float(pystoi.stoi(recorded, copy, SAMPLE_RATE))
    return math.nan if value == 1e-5 else value


def dnsmos(samples: np.ndarray) -> dict[str, float]:
    """Predicted mean opinion scores (Reddy et al. 2022), 1 to 5: {"signal", "background", "overall"}.

    A short clip is repeated, a long one scored in steps of a second and averaged, as the model's authors do.
    """
    session, size = _dnsmos_session(), int(DNSMOS_SECONDS * SAMPLE_RATE)
    audio = np.clip(samples, -1, 1).astype(np.float32)
    while len(audio) < size:  # doubled until it suffices, as the authors do: the same numbers as speechmos
        audio = np.concatenate([audio, audio])
    starts = range(0, len(audio) - size + 1, SAMPLE_RATE)
    raw = np.stack([session.run(None, {"input_1": audio[None, start : start + size]})[0][0] for start in starts])
    return {name: float(np.mean(np.polyval(curve, raw[:, i]))) for i, (name, curve) in enumerate(DNSMOS_CURVES.items())}


@cache
def _dnsmos_session() -> Any:
    runtime = need("onnxruntime", needed_for="DNSMOS")
    model = package_folder("speechmos", needed_for="DNSMOS") / "dnsmos_models" / "sig_bak_ovr.onnx"
    return runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
