"""When each sound of a clip is heard: reading TextGrid and CTM files, and laying sounds on frames.

Owns the border between aligners and phone views: a list of `Sound`. Times are seconds from the start of the clip.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from uniaudio.tokenize_farm.manifest import ManifestRow

FRAMES_PER_SECOND = 50
_SILENCES = {"", "sil", "sp", "spn", "pau", "<eps>", "<sil>", "_", "h#", "#", "silence", "<p>"}
_TOKENS = re.compile(r'"((?:[^"]|"")*)"|\[[^\]]*\]|<[^>]*>|(?<![\w.])([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?![\w.])')


class BadAlignment(Exception):
    """A file of an alignment that cannot be used; the message says why."""


@dataclass(frozen=True)
class Sound:
    """A phone by its name in the inventory. opens_word: the first of its word."""

    phone: str
    start: float
    end: float
    opens_word: bool


@dataclass(frozen=True)
class Interval:
    """A labelled stretch of a file."""

    label: str
    start: float
    end: float


def frames_of(sounds: Sequence[Sound], frames: int) -> list[tuple[str, int]]:
    """Phones with the frames they last, `frames` in all. Pauses are `<sil>`; a `<wb>` of 0 frames parts words without a pause between them.

    A gap inside a word belongs to the sound before it. Sounds outside the clip are left out; one shorter than half a frame may last 0.
    """
    rows: list[tuple[str, int]] = []
    at = 0
    for sound in sounds:
        start, end = (min(frames, max(at, round(time * FRAMES_PER_SECOND))) for time in (sound.start, sound.end))
        if sound.end <= 0 or sound.start * FRAMES_PER_SECOND >= frames:
            continue
        if start > at and not sound.opens_word and rows:
            rows[-1] = rows[-1][0], rows[-1][1] + start - at
        elif start > at:
            rows.append(("<sil>", start - at))
        elif sound.opens_word and rows:
            rows.append(("<wb>", 0))
        rows.append((sound.phone, end - start))
        at = end
    if at < frames:
        rows.append(("<sil>", frames - at))
    return rows


def read_sounds(row: ManifestRow, path: Path, *, name_of: Callable[[str], str | None], spell: Callable[[str], list[str]]) -> list[Sound]:
    """The sounds of a row from its alignment file, whose times count from the start of the recording.

    Args:
        name_of: label of a phone -> its name in the inventory, None where it is no phone.
        spell: word -> its phones; they share a word's time evenly where a file has words only.

    Raises:
        BadAlignment: a file that cannot be read, or without words and phones.
    """
    try:
        text = _decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise BadAlignment(f"{path} cannot be read: {error}") from error
    tiers = _textgrid(text, path) if path.suffix.lower() == ".textgrid" else {"": _ctm(text, path, (row.id, Path(row.audio_filepath).stem))}
    words = next((tier for name, tier in tiers.items() if name.lower().startswith("word")), None)
    phones = next((tier for name, tier in tiers.items() if name.lower().startswith("phone")), None)
    if words is None and phones is None:
        first = next(iter(tiers.values()), [])
        spoken = [part for part in first if not _silent(part.label)]
        if not spoken:
            raise BadAlignment(f"{path} holds no words and no phones of {row.id}")
        words, phones = (None, first) if all(name_of(part.label) for part in spoken) else (first, None)
    sounds = _from_phones(phones, words or [], name_of) if phones is not None else _from_words(words or [], spell)
    return [Sound(sound.phone, sound.start - row.offset, sound.end - row.offset, sound.opens_word) for sound in sounds]


def share(word: Sequence[str], start: float, end: float) -> list[Sound]:
    """The phones of a word, each as long as the others."""
    step = (end - start) / max(1, len(word))
    return [Sound(phone, start + i * step, start + (i + 1) * step, i == 0) for i, phone in enumerate(word)]


def _from_words(words: Sequence[Interval], spell: Callable[[str], list[str]]) -> list[Sound]:
    return [sound for word in words if not _silent(word.label) for sound in share(spell(word.label), word.start, word.end)]


def _from_phones(phones: Sequence[Interval], words: Sequence[Interval], name_of: Callable[[str], str | None]) -> list[Sound]:
    """Word borders from the tier of words; without one, only a silence parts words."""
    opening = [round(word.start, 4) for word in words if not _silent(word.label)]
    sounds: list[Sound] = []
    silent = True
    for part in phones:
        if _silent(part.label):
            silent = True
            continue
        opens = round(part.start, 4) in opening if words else silent
        sounds.append(Sound(name_of(part.label) or "<unk>", part.start, part.end, opens))
        silent = False
    return sounds


def _silent(label: str) -> bool:
    return label.strip().lower() in _SILENCES


def _decoded(data: bytes) -> str:
    """Praat writes UTF-8 or UTF-16."""
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def _textgrid(text: str, path: Path) -> dict[str, list[Interval]]:
    """Interval tiers by name, of Praat's long or short text format: both are the same strings and numbers in the same order."""
    matches = [match for match in _TOKENS.finditer(text) if match[0][0] not in "[<"]
    tokens = [match[2] if match[1] is None else match[1].replace('""', '"') for match in matches]
    if tokens[:2] != ["ooTextFile", "TextGrid"]:
        raise BadAlignment(f"{path} is no TextGrid in Praat's text format")
    try:
        tiers: dict[str, list[Interval]] = {}
        at = 5  # file type, object class, first and last second, number of tiers
        for _ in range(int(tokens[4])):
            kind, name, size = tokens[at], tokens[at + 1], int(tokens[at + 4])
            at += 5
            width = 3 if kind == "IntervalTier" else 2
            if kind == "IntervalTier":
                rows = (tokens[at + width * i : at + width * (i + 1)] for i in range(size))
                tiers[name] = [Interval(label, float(start), float(end)) for start, end, label in rows]
            at += width * size
    except (IndexError, ValueError) as error:
        raise BadAlignment(f"{path} is a damaged TextGrid: {error}") from error
    return tiers


def _ctm(text: str, path: Path, names: tuple[str, ...]) -> list[Interval]:
    """Lines `FILE CHANNEL START SECONDS LABEL [CONFIDENCE]`; of a file with several recordings those named like the row or its file."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith(";;")]
    if len({line[0] for line in lines}) > 1:
        lines = [line for line in lines if line[0] in names]
    try:
        return [Interval(line[4], float(line[2]), float(line[2]) + float(line[3])) for line in lines]
    except (IndexError, ValueError) as error:
        raise BadAlignment(f"{path} is no CTM: lines of FILE CHANNEL START SECONDS LABEL") from error
