"""A manifest of the user's own recordings: every audio file below a folder.

What names say: a top folder called speech, sound, music or singing gives the kind; the folder a file lies in gives its speaker (files
in no folder of their own are taken for one speaker's, named after the whole folder); a `.txt` file of the same name gives the words
(speech, singing) or the description (sound, music; otherwise made from the file's name).
"""

import os
from collections.abc import Iterator
from pathlib import Path

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SUFFIXES
from uniaudio.tokenize_farm.corpus.build import Corpus
from uniaudio.tokenize_farm.corpus.captions import readable
from uniaudio.tokenize_farm.corpus.source import AUDIO_SUFFIXES, MAX_ROW_SECONDS, Recording, audio_files, manifest_rows
from uniaudio.tokenize_farm.corpus.split import HELD_OUT_PERCENT
from uniaudio.tokenize_farm.manifest import make_id
from uniaudio.tokenize_farm.schema import KINDS


def folder_corpus(
    folder: Path,
    *,
    kind: str = "speech",
    language: str | None = None,
    licence: str = "not stated",
    percent: int = HELD_OUT_PERCENT,
    max_seconds: float = MAX_ROW_SECONDS,
) -> Corpus:
    """Rows of every readable audio file below `folder`; `kind` and `language` are those of files whose place does not say.

    Files that cannot be read are logged and counted. Raises UserError where there is no folder or no readable audio in it.
    """
    if not folder.is_dir():
        raise UserError("no such folder of recordings", seen=folder, remedy="give a folder with audio files")
    corpus = Corpus()
    recordings = [_recording(folder.absolute(), path, kind, language, licence) for path in audio_files(folder.absolute())]
    name = folder.absolute().name
    rows = list(manifest_rows(name, recordings, origin="own", dropped=corpus.dropped, seen=set(), percent=percent, max_seconds=max_seconds))
    corpus.by_source[name] = rows
    if not rows:
        raise UserError("no readable audio below the folder", seen=folder, allowed=", ".join(AUDIO_SUFFIXES), remedy="check the folder")
    return corpus


def folder_rows(folder: Path) -> Iterator[dict[str, object]]:
    """Rows of every audio file below `folder`, in a fixed order, one folder at a time; no file is opened (`folder_corpus` opens all).

    Links are not followed. Raises UserError where there is no audio file.
    """
    empty = True
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and not path.is_symlink():
                empty = False
                made = _recording(folder, path, "speech", None, "not stated")
                known = {"kind": made.kind, "text": made.text, "speaker": made.speaker, "caption": made.caption}
                row: dict[str, object] = {"id": make_id(made.name), "audio_filepath": str(path)}
                yield row | {key: value for key, value in known.items() if value}
    if empty:
        raise UserError("no audio below the folder", seen=folder, allowed=", ".join(SUFFIXES), remedy="check the folder")


def _recording(folder: Path, path: Path, kind: str, language: str | None, licence: str) -> Recording:
    name = path.relative_to(folder)
    parents = list(name.parts[:-1])
    if parents and parents[0] in KINDS:
        kind = parents.pop(0)
    text = _text_beside(path)
    spoken = kind in ("speech", "singing")
    return Recording(
        path=path,
        name=name.as_posix(),
        kind=kind,
        text=text if spoken else None,
        caption=None if spoken else text or readable(path.name) or None,
        speaker=("/".join(parents) or folder.name) if spoken else None,
        language=language if spoken else None,
        licence=licence,
    )


def _text_beside(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    try:
        return " ".join(beside.read_text(encoding="utf-8-sig").split()) or None
    except UnicodeDecodeError as error:
        raise UserError("a text beside a recording is not UTF-8", seen=beside, remedy="save it as UTF-8") from error
