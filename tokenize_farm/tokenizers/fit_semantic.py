"""Fits the centres of the embedded semantic units on the speech of a manifest: `uniaudio tokenize fit-semantic`.

Plain k-means (Lloyd) on a random sample of frames. The manifest is cut into parts; features and sums of a part are worked out by any
process, added up in the order of the parts, and kept in a folder beside the result. So the same rows and seed give the same file with any
number of workers, and what was killed goes on after the last part, or the last iteration.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from uniaudio.atomic import publish_bytes, publish_file
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.audio import BadAudio, load_audio
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.protocol import VOICED_KINDS
from uniaudio.tokenize_farm.tokenizers.semantic import FEATURES, features

PART_ROWS = 256
ITERATIONS = 40
_BLOCK = 8192  # rows whose distances are computed at once

Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


@dataclass(frozen=True)
class Fit:
    """How many frames were fitted, and what share of their variance the nearest centres explain."""

    frames: int
    explained_variance: float


@dataclass(frozen=True)
class Sums:
    """What a part adds to an iteration: sums (K, C) and counts (K,) of the points nearest each centre, the squared distances to it in
    all, and its `farthest` points (distance, part, row), farthest first."""

    sums: np.ndarray
    counts: np.ndarray
    distance: float
    farthest: list[tuple[float, int, int]]


def fit_semantic(
    rows: Iterable[ManifestRow], path: Path, *, units: int, frames_per_clip: int = 200, seed: int = 0, mapper: Mapper = map
) -> Fit:
    """Fits and writes `path` (safetensors: centroids (units, C), scale (C,)).

    Args:
        mapper: `map`, or the like on several processes (`ray_map`).

    Raises:
        UserError: no speech, too few frames, or a folder of parts beside `path` that another fit left.
    """
    chosen = [row for row in rows if row.kind in VOICED_KINDS and row.split != "valid"]
    if not chosen:
        raise UserError("no speech to fit on", remedy="give a manifest with rows of kind speech or singing outside the split valid")
    work = path.with_name(f"{path.name}.parts")
    _open_work(work, chosen, units=units, frames_per_clip=frames_per_clip, seed=seed)
    parts = [work / f"part-{number:06d}.npy" for number in range(-(-len(chosen) // PART_ROWS))]
    batches = [chosen[begin : begin + PART_ROWS] for begin in range(0, len(chosen), PART_ROWS)]
    jobs = [(part, batch, frames_per_clip, seed) for part, batch in zip(parts, batches) if not part.is_file()]
    for _ in mapper(write_part, jobs):
        pass
    sizes = [len(np.load(part, mmap_mode="r")) for part in parts]
    if sum(sizes) < 10 * units:
        raise UserError("too few frames to fit on", seen=sum(sizes), allowed=f"at least {10 * units}", remedy="give more speech")
    scale = _scale(parts)
    centroids, distance = _lloyd(work, parts, sizes, scale, units=units, seed=seed, mapper=mapper)
    mean = _mean(parts, scale)
    variance = sum(float(np.square(_scaled(part, scale) - mean).sum(dtype=np.float64)) for part in parts)
    with publish_file(path) as temporary:
        # one key of metadata: safetensors writes several in random order
        save_file({"centroids": centroids, "scale": scale}, str(temporary), metadata={"features": FEATURES})
    shutil.rmtree(work)
    return Fit(frames=sum(sizes), explained_variance=1 - distance / variance)


def _open_work(work: Path, rows: Sequence[ManifestRow], **settings: int) -> None:
    """Makes the folder of parts, or goes on with one of the same fit."""
    described = json.dumps([settings, FEATURES, [[row.id, row.offset, row.duration] for row in rows]], sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()
    mark = work / "fit"
    if mark.is_file() and mark.read_text() != digest:
        raise UserError("another fit was begun here", seen=work, remedy="delete that folder, or give another --out")
    publish_bytes(mark, digest.encode())


def write_part(job: tuple[Path, Sequence[ManifestRow], int, int]) -> None:
    """Features of some rows: up to `frames_per_clip` frames of each clip, drawn by its id; bad clips are logged."""
    path, rows, frames_per_clip, seed = job
    found = [np.zeros((0, 39), np.float32)]
    for row in rows:
        try:
            frames = features(load_audio(row.audio_filepath, offset=row.offset, duration=row.duration))
        except BadAudio as error:
            get_logger("uniaudio.tokenizers").warning("%s left out: %s", row.id, error)
            continue
        rng = np.random.default_rng([seed, int(hashlib.sha256(row.id.encode()).hexdigest()[:15], 16)])
        found.append(frames[np.sort(rng.choice(len(frames), min(len(frames), frames_per_clip), replace=False))])
    with publish_file(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, np.concatenate(found))


def _scale(parts: Sequence[Path]) -> np.ndarray:
    """(C,) float32: 1 / standard deviation of each feature."""
    count, total, squares = 0, 0.0, 0.0
    for part in parts:
        points = np.load(part).astype(np.float64)
        count, total, squares = count + len(points), total + points.sum(axis=0), squares + np.square(points).sum(axis=0)
    return (1 / np.sqrt(squares / count - np.square(total / count))).astype(np.float32)


def _scaled(part: Path, scale: np.ndarray) -> np.ndarray:
    return np.load(part) * scale


def _mean(parts: Sequence[Path], scale: np.ndarray) -> np.ndarray:
    sums = [(_scaled(part, scale).sum(axis=0, dtype=np.float64), len(np.load(part, mmap_mode="r"))) for part in parts]
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


def _lloyd(
    work: Path, parts: Sequence[Path], sizes: Sequence[int], scale: np.ndarray, *, units: int, seed: int, mapper: Mapper
) -> tuple[np.ndarray, float]:
    """Centres (units, C) after ITERATIONS, and the squared distances left; each iteration is kept in `work`."""
    done = sorted(work.glob("centres-*.npy"))
    if done:
        first, centroids = int(done[-1].stem.split("-")[1]), np.load(done[-1])
    else:
        drawn = np.sort(np.random.default_rng(seed).choice(sum(sizes), units, replace=False))
        first, centroids = 0, _points(parts, sizes, scale, drawn)
    for iteration in range(first, ITERATIONS):
        sums = _iterate(parts, scale, centroids, mapper)
        centroids = (sums.sums / np.maximum(sums.counts, 1)[:, None]).astype(np.float32)
        for unit, (_, part, row) in zip(np.flatnonzero(sums.counts == 0), sums.farthest):  # a centre without points moves
            centroids[unit] = _scaled(parts[part], scale)[row]
        with publish_file(work / f"centres-{iteration + 1:06d}.npy") as temporary, temporary.open("wb") as handle:
            np.save(handle, centroids)
        (work / f"centres-{iteration:06d}.npy").unlink(missing_ok=True)
    return centroids, _iterate(parts, scale, centroids, mapper).distance


def _points(parts: Sequence[Path], sizes: Sequence[int], scale: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The points of these numbers, counted through all parts."""
    ends = np.cumsum(sizes)
    owner = np.searchsorted(ends, places, side="right")
    found = [_scaled(parts[part], scale)[places[owner == part] - (ends[part] - sizes[part])] for part in np.unique(owner)]
    return np.concatenate(found).astype(np.float32)


def _iterate(parts: Sequence[Path], scale: np.ndarray, centroids: np.ndarray, mapper: Mapper) -> Sums:
    """One pass over all parts, added up in their order."""
    found = list(mapper(partial(sum_part, scale, centroids), list(enumerate(parts))))
    farthest = sorted((entry for part in found for entry in part.farthest), reverse=True)
    return Sums(sum(part.sums for part in found), sum(part.counts for part in found), sum(part.distance for part in found), farthest)


def sum_part(scale: np.ndarray, centroids_KC: np.ndarray, job: tuple[int, Path]) -> Sums:
    """A part's share of an iteration."""
    number, path = job
    points = _scaled(path, scale)
    nearest, distances = assign(points, centroids_KC)
    sums = np.zeros(centroids_KC.shape)
    np.add.at(sums, nearest, points)
    far = np.argsort(-distances, kind="stable")[: len(centroids_KC)]
    farthest = [(float(distances[row]), number, int(row)) for row in far]
    return Sums(sums, np.bincount(nearest, minlength=len(centroids_KC)), float(distances.sum(dtype=np.float64)), farthest)


def assign(points_NC: np.ndarray, centroids_KC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the nearest centre of each point, and the squared distance to it."""
    half_norms = 0.5 * np.square(centroids_KC).sum(axis=1)
    nearest = np.empty(len(points_NC), dtype=np.int64)
    closeness = np.empty(len(points_NC), dtype=np.float32)
    for begin in range(0, len(points_NC), _BLOCK):
        block = points_NC[begin : begin + _BLOCK]
        scores = block @ centroids_KC.T - half_norms
        nearest[begin : begin + _BLOCK] = scores.argmax(axis=1)
        closeness[begin : begin + _BLOCK] = scores.max(axis=1)
    return nearest, np.square(points_NC).sum(axis=1) - 2 * closeness
