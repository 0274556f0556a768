"""Recordings that clips are mixed with: a bounded sample of a manifest, decoded on demand.

Which rows: of each kind and split the `size` rows with the smallest hash of their id, a pure function of the manifest.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from uniaudio.tokenize_farm.audio import BadAudio, audio_seconds, load_audio
from uniaudio.tokenize_farm.fetch import local_copy
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.simulate.draw import Draw

_TRIES = 8
_QUIET = 1e-4  # root mean square below which a piece is no noise to anyone


def choose_rows(rows: Iterable[tuple[ManifestRow, str]], size: int) -> list[tuple[ManifestRow, str]]:
    """Of (row, split) pairs, at most `size` of each kind and split, ordered by the hash of their id. One pass, bounded memory."""
    kept: dict[tuple[str, str], list[tuple[int, str, ManifestRow]]] = {}
    for row, split in rows:
        rank = int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:8], "big")
        heap = kept.setdefault((split, row.kind), [])
        entry = (-rank, row.id, row)
        if len(heap) < size:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)
    return [(row, split) for (split, _), heap in sorted(kept.items()) for _, _, row in sorted(heap, reverse=True)]


class Pool:
    """Rows by split and kind, and pieces of their sound."""

    def __init__(self, rows: Sequence[tuple[ManifestRow, str]]) -> None:
        self._rows: dict[tuple[str, str], list[ManifestRow]] = {}
        for row, split in rows:
            self._rows.setdefault((split, row.kind), []).append(row)

    def draw(
        self, draw: Draw, split: str, kinds: Sequence[str], fits: Callable[[ManifestRow], bool], seconds: float
    ) -> tuple[ManifestRow, np.ndarray] | None:
        """A row that fits, and up to `seconds` of it (S,); None where some draws found none that can be heard."""
        rows = [row for kind in kinds for row in self._rows.get((split, kind), ())]
        for _ in range(_TRIES if rows else 0):
            row = draw.choose(rows)
            if fits(row) and (samples := piece(row, draw, seconds)) is not None:
                return row, samples
        return None


def piece(row: ManifestRow, draw: Draw, seconds: float) -> np.ndarray | None:
    """`seconds` of a row from a drawn place, all of it where it is shorter. None where it cannot be read or heard: the farm drops and
    counts such a row where it is a clip of its own."""
    at = draw.uniform(0, 1)
    try:
        with local_copy(row.audio_filepath) as path:
            length = row.duration or audio_seconds(path) - row.offset
            if length <= 0:
                return None
            wanted = min(seconds, length)
            samples = load_audio(path, offset=row.offset + at * (length - wanted), duration=wanted)
    except BadAudio:
        return None
    return samples if np.sqrt(np.mean(np.square(samples, dtype=np.float64))) >= _QUIET else None
