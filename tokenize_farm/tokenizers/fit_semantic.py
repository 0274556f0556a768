"""Fits the centres of the embedded semantic units on the speech of a manifest: `uniaudio tokenize fit-semantic`.

Plain k-means (Lloyd) on a random sample of frames; the same manifest and seed give the same file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from uniaudio.atomic import publish_file
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.audio import BadAudio, load_audio
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.protocol import VOICED_KINDS
from uniaudio.tokenize_farm.tokenizers.semantic import FEATURES, features

_BLOCK = 8192  # rows whose distances are computed at once


@dataclass(frozen=True)
class Fit:
    """How many frames were fitted, and what share of their variance the nearest centres explain."""

    frames: int
    explained_variance: float


def sample_features(rows: Iterable[ManifestRow], *, frames_per_clip: int, seed: int) -> np.ndarray:
    """(N, C): up to `frames_per_clip` random frames of each clip of speech or singing outside the split valid; bad clips are logged."""
    rng = np.random.default_rng(seed)
    parts = []
    for row in rows:
        if row.kind not in VOICED_KINDS or row.split == "valid":
            continue
        try:
            frames = features(load_audio(row.audio_filepath, offset=row.offset, duration=row.duration))
        except BadAudio as error:
            get_logger("uniaudio.tokenizers").warning("%s left out: %s", row.id, error)
            continue
        parts.append(frames[np.sort(rng.choice(len(frames), min(len(frames), frames_per_clip), replace=False))])
    if not parts:
        raise UserError("no speech to fit on", remedy="give a manifest with rows of kind speech or singing")
    return np.concatenate(parts)


def fit_centroids(points_NC: np.ndarray, units: int, *, iterations: int = 40, seed: int = 0) -> np.ndarray:
    """Lloyd's k-means: (N, C) -> (units, C) float32. A centre that loses its last point moves to the point farthest from its own.

    Raises:
        UserError: fewer points than ten a unit.
    """
    if len(points_NC) < 10 * units:
        raise UserError("too few frames to fit on", seen=len(points_NC), allowed=f"at least {10 * units}", remedy="give more speech")
    rng = np.random.default_rng(seed)
    centroids = points_NC[rng.choice(len(points_NC), units, replace=False)].astype(np.float32)
    for _ in range(iterations):
        nearest, distances = _assign(points_NC, centroids)
        counts = np.bincount(nearest, minlength=units)
        sums = np.zeros((units, points_NC.shape[1]))
        np.add.at(sums, nearest, points_NC)
        centroids = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        centroids[empty] = points_NC[np.argsort(-distances, kind="stable")[: len(empty)]]
    return centroids


def _assign(points_NC: np.ndarray, centroids_KC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the nearest centre of each point, and the squared distance to it up to the point's own square."""
    half_norms = 0.5 * np.square(centroids_KC).sum(axis=1)
    nearest = np.empty(len(points_NC), dtype=np.int64)
    closeness = np.empty(len(points_NC), dtype=np.float32)
    for begin in range(0, len(points_NC), _BLOCK):
        block = points_NC[begin : begin + _BLOCK]
        scores = block @ centroids_KC.T - half_norms
        nearest[begin : begin + _BLOCK] = scores.argmax(axis=1)
        closeness[begin : begin + _BLOCK] = scores.max(axis=1)
    return nearest, np.square(points_NC).sum(axis=1) - 2 * closeness


def fit_semantic(rows: Iterable[ManifestRow], path: Path, *, units: int, frames_per_clip: int = 200, seed: int = 0) -> Fit:
    """Fits and writes `path` (safetensors: centroids (units, C), scale (C,)); the same rows and seed give the same bytes."""
    points = sample_features(rows, frames_per_clip=frames_per_clip, seed=seed)
    scale = (1 / points.std(axis=0)).astype(np.float32)
    centroids = fit_centroids(points * scale, units, seed=seed)
    _, distances = _assign(points * scale, centroids)
    explained = 1 - float(distances.sum() / np.square(points * scale - (points * scale).mean(axis=0)).sum())
    with publish_file(path) as temporary:
        # one key of metadata: safetensors writes several in random order
        save_file({"centroids": centroids, "scale": scale}, str(temporary), metadata={"features": FEATURES})
    return Fit(frames=len(points), explained_variance=explained)
