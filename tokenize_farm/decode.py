"""Manifest rows -> decoded clips, and a reason for each row that is left out.

Owns the order of steps: fetch, decode, cut, filter. A row is dropped for a reason of `audio.REASONS` only; every other fault ends the run,
so that no bug can pass for bad data. Clips come in the manifest's order, as many at once as `batch_seconds` allows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uniaudio.configs.farm import FarmConfig
from uniaudio.tokenize_farm.audio import MAX_SECONDS, SAMPLE_RATE, BadAudio, audio_seconds, load_audio
from uniaudio.tokenize_farm.clock import Clock
from uniaudio.tokenize_farm.cut import cut_at_pauses
from uniaudio.tokenize_farm.fetch import local_copy
from uniaudio.tokenize_farm.filters import check_clip, check_row
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.protocol import Clip


@dataclass
class Drops:
    """Dropped rows: reason -> ids, and id -> what was seen."""

    ids: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def add(self, row: ManifestRow, error: BadAudio, folder: Path) -> None:
        """Paths below `folder` are written relative to it: a moved corpus gives the same bytes."""
        self.ids.setdefault(error.reason, []).append(row.id)
        self.details[row.id] = error.detail.replace(f"{folder}/", "")


class Decoder:
    """Decodes the rows of one farm."""

    def __init__(self, config: FarmConfig) -> None:
        self._config = config

    def batches(
        self, rows: Sequence[ManifestRow], folder: Path, drops: Drops, clock: Clock, *, poison: Sequence[int] = ()
    ) -> Iterator[list[Clip]]:
        """Decoded clips, at most about `batch_seconds` of them at once; what is bad goes into `drops`.

        Args:
            folder: of the manifest.
            poison: places in `rows` that are dropped unopened.
        """
        batch: list[Clip] = []
        held = 0
        for place, row in enumerate(rows):
            try:
                if place in poison:
                    raise BadAudio("poison", "every worker that touched it died; see the farm's log")
                for clip in self._clips(row, clock):
                    if batch and held + len(clip.samples) > self._config.held_seconds * SAMPLE_RATE:
                        yield batch
                        batch, held = [], 0
                    batch.append(clip)
                    held += len(clip.samples)
            except BadAudio as error:
                drops.add(row, error, folder)
        if batch:
            yield batch

    def _clips(self, row: ManifestRow, clock: Clock) -> Iterator[Clip]:
        """The clip of a row, or its pieces: one that a filter refuses is let go, what was cut before a fault of the recording is kept."""
        filters = self._config.filters
        with clock.step("decode"):
            check_row(row, filters)
        with local_copy(row.audio_filepath) as path:
            with clock.step("decode"):
                seconds = self._long(row, path)
                samples = self._load(row, path) if seconds is None else None
            if samples is not None:
                yield Clip(row, samples)
            elif seconds is not None:
                yield from self._pieces(row, path, seconds, clock)

    def _long(self, row: ManifestRow, path: Path) -> float | None:
        """Seconds of a row that is to be cut; None for one that is taken whole."""
        if self._config.filters.long_clips == "drop" or row.kind != "speech" or row.text:
            return None
        seconds = row.duration if row.duration is not None else audio_seconds(path) - row.offset
        return seconds if seconds > self._config.filters.max_seconds else None

    def _load(self, row: ManifestRow, path: Path) -> np.ndarray:
        # A longer clip than the filter lets pass is not decoded beyond it; one second more tells "too long" from "just fits".
        samples = self._read(row, path, row.offset, row.duration, self._config.filters.max_seconds + 1)
        check_clip(samples, self._config.filters, kind=row.kind)
        return samples

    @staticmethod
    def _read(row: ManifestRow, path: Path, offset: float, duration: float | None, max_seconds: float) -> np.ndarray:
        return load_audio(path, offset=offset, duration=duration, channel=row.channel, max_seconds=max_seconds)

    def _pieces(self, row: ManifestRow, path: Path, seconds: float, clock: Clock) -> Iterator[Clip]:
        def read(offset: float, duration: float) -> np.ndarray:
            try:
                return self._read(row, path, row.offset + offset, duration, MAX_SECONDS)
            except BadAudio as error:
                if error.reason != "silent":
                    raise
                return np.zeros(round(duration * SAMPLE_RATE), dtype=np.float32)  # ten silent minutes among others

        filters = self._config.filters
        pieces = cut_at_pauses(read, seconds, min_seconds=filters.min_seconds, max_seconds=filters.max_seconds)
        number, refused = 0, None
        while True:
            with clock.step("decode"):
                piece = next(pieces, None)
                if piece is None:
                    break
                try:
                    check_clip(piece[1], filters, kind=row.kind)
                except BadAudio as error:
                    refused = error
                    continue
            offset, duration = round(row.offset + piece[0], 4), len(piece[1]) / SAMPLE_RATE
            yield Clip(row.model_copy(update={"id": f"{row.id}--{number:05d}", "offset": offset, "duration": duration}), piece[1])
            number += 1
        if not number and refused:
            raise refused
