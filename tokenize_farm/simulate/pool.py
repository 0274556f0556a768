"""Recordings that clips are mixed with: a bounded sample of a manifest, decoded on demand.

Which rows: of each kind and split the `size` rows with the smallest hash of their id, a pure function of the manifest.
"""

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from uniaudio.tokenize_farm.audio import SAMPLE_RATE, BadAudio, load_audio
from uniaudio.tokenize_farm.fetch import local_copy
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.simulate.draw import Draw

_MAX_SECONDS = 60.0  # of one recording that is mixed in: the rest is not read
_HELD_SECONDS = 1200.0  # decoded recordings kept, about 77 MB
_TRIES = 8
_QUIET = 1e-4  # root mean square below which a recording is no noise to anyone


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
    """Rows by split and kind, and their samples."""

    def __init__(self, rows: Sequence[tuple[ManifestRow, str]]) -> None:
        self._rows: dict[tuple[str, str], list[ManifestRow]] = {}
        for row, split in rows:
            self._rows.setdefault((split, row.kind), []).append(row)
        self._held: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bad: set[str] = set()

    def count(self, split: str, kinds: Iterable[str]) -> int:
        """Rows of these kinds."""
        return sum(len(self._rows.get((split, kind), ())) for kind in kinds)

    def draw(
        self, draw: Draw, split: str, kinds: Sequence[str], fits: Callable[[ManifestRow], bool]
    ) -> tuple[ManifestRow, np.ndarray] | None:
        """A row that fits, and its samples (S,); None where some draws found none that can be heard."""
        total = self.count(split, kinds)
        for _ in range(_TRIES if total else 0):
            number = draw.below(total)
            for kind in kinds:
                rows = self._rows.get((split, kind), [])
                if number < len(rows):
                    break
                number -= len(rows)
            row = rows[number]
            if fits(row) and (samples := self._samples(row)) is not None:
                return row, samples
        return None

    def _samples(self, row: ManifestRow) -> np.ndarray | None:
        """Decoded; None for a recording that cannot be used (the farm drops and counts it where it is a clip of its own)."""
        if row.id in self._held:
            self._held.move_to_end(row.id)
            return self._held[row.id]
        if row.id in self._bad:
            return None
        seconds = _MAX_SECONDS if row.duration is None else min(row.duration, _MAX_SECONDS)
        try:
            samples = _load_start(row, seconds)
        except BadAudio:
            samples = np.zeros(0, np.float32)
        if len(samples) == 0 or np.sqrt(np.mean(np.square(samples, dtype=np.float64))) < _QUIET:
            self._bad.add(row.id)
            return None
        self._held[row.id] = samples
        while sum(map(len, self._held.values())) > _HELD_SECONDS * SAMPLE_RATE:
            self._held.popitem(last=False)
        return samples


def _load_start(row: ManifestRow, seconds: float) -> np.ndarray:
    """The first `seconds` of a row; all of a recording whose length no row says, if it is no longer than that."""
    with local_copy(row.audio_filepath) as path:
        if row.duration is None:
            return load_audio(path, offset=row.offset, max_seconds=seconds)
        return load_audio(path, offset=row.offset, duration=seconds)
