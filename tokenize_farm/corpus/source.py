"""What a source of recordings is: Debian packages, the files to unpack, and how to read them as recordings. And its rows.

Owns `Recording`, `Source` and the way from one to manifest rows (length, parts of at most 30 s, split, licence). Fetches nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import ceil
from pathlib import Path, PurePosixPath

from uniaudio.log import get_logger
from uniaudio.tokenize_farm.audio import MIN_SECONDS, BadAudio, audio_seconds, load_audio
from uniaudio.tokenize_farm.corpus.debian import sha256_of
from uniaudio.tokenize_farm.corpus.split import HELD_OUT_PERCENT, Split, split_of
from uniaudio.tokenize_farm.manifest import ManifestRow, make_id

log = get_logger("uniaudio.corpus")

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".g722")
MAX_ROW_SECONDS = 30.0
MADE = "made"


@dataclass(frozen=True)
class Recording:
    """One recorded file. `name`, its stable name inside the source, decides id and split: it holds no version and no machine path."""

    path: Path
    name: str
    kind: str  # one of schema.KINDS
    licence: str
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    caption: str | None = None
    midi: str | None = None
    made_of: tuple[str, str] | None = None  # source and name of the recording that this one was made of: both lie in one split
    more: Mapping[str, str] = field(default_factory=dict)  # further keys of the row: alignment, gender, ...


@dataclass(frozen=True)
class Source:
    """Recordings of one origin. `read` takes the folder each package was unpacked into, and under MADE one to write into."""

    name: str
    packages: tuple[str, ...]
    read: Callable[[Mapping[str, Path]], Iterator[Recording]]
    texts: tuple[str, ...] = field(default=())  # patterns of the files besides audio that `read` needs

    @property
    def purpose(self) -> str:
        """Names the set of files this source unpacks: sources that want the same share one folder."""
        return hashlib.sha256("\0".join((*AUDIO_SUFFIXES, *self.texts)).encode()).hexdigest()[:8]

    def wanted(self, name: str) -> bool:
        """Whether a file of a package is unpacked."""
        suffix = PurePosixPath(name).suffix.lower()
        return suffix in AUDIO_SUFFIXES or name.endswith("/copyright") or any(fnmatchcase(name, pattern) for pattern in self.texts)


def manifest_rows(
    source: str,
    recordings: Iterable[Recording],
    *,
    origin: str,
    dropped: Counter[str],
    seen: set[str],
    percent: int = HELD_OUT_PERCENT,
    max_seconds: float = MAX_ROW_SECONDS,
) -> Iterator[ManifestRow]:
    """The rows of recordings, longer ones without text cut into equal parts. What is left out is counted in `dropped` by reason.

    origin: what the rows name as their source (package and version). seen: SHA-256 of the files so far; a file of the same bytes is left
    out, so that nothing held out is trained on under another name.
    """
    for recording in recordings:
        try:
            seconds = audio_seconds(recording.path)
            if seconds < MIN_SECONDS:
                raise BadAudio("too_short", f"{recording.path}: {seconds:.4f} s; at least {MIN_SECONDS} s")
        except BadAudio as error:
            log.warning("left out: %s", error)
            dropped[error.reason] += 1
            continue
        digest = sha256_of(recording.path)
        if digest in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(digest)
        split = split_of(*(recording.made_of or (source, recording.name)), kind=recording.kind, speaker=recording.speaker, percent=percent)
        parts = 1 if recording.text else ceil(seconds / max_seconds)  # a text belongs to the whole
        length = seconds / parts
        for part in range(parts):
            offset = round(part * length, 3)
            duration = round(min(length, seconds - offset), 3)
            if parts > 1 and recording.kind == "sound" and not _heard(recording.path, offset, duration, dropped):
                continue
            yield _row(source, recording, offset, duration, origin=origin, split=split)


def _row(source: str, recording: Recording, offset: float, duration: float, *, origin: str, split: Split) -> ManifestRow:
    return ManifestRow(
        id=make_id(f"{source}/{recording.name}", offset),
        audio_filepath=str(recording.path),
        offset=offset,
        duration=duration,
        kind=recording.kind,  # type: ignore[arg-type]  # checked by ManifestRow
        text=recording.text,
        speaker=recording.speaker,
        language=recording.language,
        caption=recording.caption,
        licence=recording.licence,
        source=origin,
        split=split.name,
        midi=recording.midi,
        custom={**recording.more, **({"held_out": split.held_out} if split.held_out else {})},
    )


def _heard(path: Path, offset: float, duration: float, dropped: Counter[str]) -> bool:
    """Whether a part of a long sound holds anything: some of these games' sounds end in minutes of silence."""
    try:
        load_audio(path, offset=offset, duration=duration)
    except BadAudio as error:
        log.debug("part left out: %s", error)
        dropped[error.reason] += 1
        return False
    return True


def audio_files(folder: Path) -> list[Path]:
    """Every audio file below `folder`, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
