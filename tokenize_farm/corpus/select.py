"""A small part of a corpus, the same one every time: so many minutes of each group, some of them held out.

Owns the choice only; a pure function of the rows.
"""

import hashlib
from collections.abc import Iterable, Sequence

from uniaudio.tokenize_farm.manifest import ManifestRow

VALID_SHARE = 0.1


def choose(rows: Sequence[ManifestRow], minutes: float, *, shortest: float = 0.3, longest: float = 15.0) -> list[ManifestRow]:
    """About `minutes` of the rows between `shortest` and `longest` seconds, in their order; about a tenth of it held out (split `valid`).

    Rows are taken in the order of the hash of their id. Where the rule of the corpus holds out no recording of these rows, the recording
    with the smallest hash is held out whole, if there are two or more.
    """
    fitting = [row for row in rows if shortest <= (row.duration or 0.0) <= longest]
    fitting = _with_held_out(fitting)
    valid = _take((row for row in fitting if row.split == "valid"), minutes * VALID_SHARE)
    train = _take((row for row in fitting if row.split != "valid"), minutes * (1 - VALID_SHARE))
    chosen = {row.id for row in (*valid, *train)}
    return [row for row in fitting if row.id in chosen]


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _with_held_out(rows: list[ManifestRow]) -> list[ManifestRow]:
    by_recording: dict[str, str] = {}
    for row in rows:  # the id of a recording's first row stands for it: it does not depend on where the files lie
        by_recording.setdefault(row.audio_filepath, row.id)
    if len(by_recording) < 2 or any(row.split == "valid" for row in rows):
        return rows
    held_out = min(by_recording, key=lambda path: _hash(by_recording[path]))
    update = {"split": "valid", "custom": {"held_out": "recording"}}
    return [row.model_copy(update=update) if row.audio_filepath == held_out else row for row in rows]


def _take(rows: Iterable[ManifestRow], minutes: float) -> list[ManifestRow]:
    """Rows in the order of their hash, until `minutes` are reached."""
    taken, seconds = [], 0.0
    for row in sorted(rows, key=lambda row: _hash(row.id)):
        if seconds >= minutes * 60 - 1e-6:
            break
        taken.append(row)
        seconds += row.duration or 0.0
    return taken
