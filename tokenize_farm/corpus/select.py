"""A small part of a corpus, the same one every time: so many minutes of each group, some of them held out.

Owns the choice only; a pure function of the rows.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from uniaudio.tokenize_farm.manifest import ManifestRow

VALID_SHARE = 0.1
_PAIR = 2
_ENOUGH_OF_A_VOICE = 4


def choose(rows: Sequence[ManifestRow], minutes: float, *, shortest: float = 0.3, longest: float = 15.0) -> list[ManifestRow]:
    """About `minutes` of the rows between `shortest` and `longest` seconds, in their order; about a tenth of it held out (split `valid`).

    Rows are taken in the order of the hash of their id. Where the rule of the corpus holds out no recording of these rows, the recording
    with the smallest hash is held out whole, if there are two or more. Of speech two recordings of one speaker are held out, where a
    speaker has four: a held-out sentence needs another one as its prompt.
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
    first: dict[str, ManifestRow] = {}
    for row in rows:  # a recording's first row stands for it, by an id that does not depend on where the files lie
        first.setdefault(row.audio_filepath, row)
    chosen: set[str] = set()
    voices = Counter(row.speaker for row in first.values() if row.kind == "speech" and row.speaker)
    held_out_voices = Counter(row.speaker for row in first.values() if row.kind == "speech" and row.split == "valid")
    if voices and max(voices.values()) >= _ENOUGH_OF_A_VOICE and max(held_out_voices.values(), default=0) < _PAIR:
        voice = min(voices, key=lambda name: (-voices[name], name))
        chosen |= set(_smallest((path for path, row in first.items() if row.speaker == voice and row.kind == "speech"), first, _PAIR))
    elif len(first) >= _PAIR and all(row.split != "valid" for row in rows):
        chosen |= set(_smallest(first, first, 1))
    update = {"split": "valid", "custom": {"held_out": "recording"}}
    return [row.model_copy(update=update) if row.audio_filepath in chosen and row.split != "valid" else row for row in rows]


def _smallest(paths: Iterable[str], first: dict[str, ManifestRow], count: int) -> list[str]:
    return sorted(paths, key=lambda path: _hash(first[path].id))[:count]


def _take(rows: Iterable[ManifestRow], minutes: float) -> list[ManifestRow]:
    """Rows in the order of their hash, until `minutes` are reached."""
    taken, seconds = [], 0.0
    for row in sorted(rows, key=lambda row: _hash(row.id)):
        if seconds >= minutes * 60 - 1e-6:
            break
        taken.append(row)
        seconds += row.duration or 0.0
    return taken
