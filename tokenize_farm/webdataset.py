"""WebDataset tars of recordings as rows: each audio member becomes a row that names its bytes in the tar.

Members of one clip share what stands before the first dot of their file name. KEY.json gives further keys of the row (text, speaker,
language, caption, kind, ...), KEY.txt the text. Links, devices and folders are passed over, nothing is unpacked.
A tar that cannot be read on becomes a row of its own, so that the farm counts it as no audio.
"""

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pydantic_core import from_json

from uniaudio.tokenize_farm.audio import SUFFIXES
from uniaudio.tokenize_farm.fetch import member_name
from uniaudio.tokenize_farm.manifest import make_id
from uniaudio.tokenize_farm.schema import KINDS

Row = dict[str, Any]

_MAX_TEXT = 1 << 20  # bytes of a KEY.json or KEY.txt; a larger one is no description
_KEYS = ("text", "speaker", "language", "caption", "instruction", "kind", "midi", "source", "licence", "split")


def tar_rows(tars: Iterable[Path]) -> Iterator[Row]:
    """The rows of every tar, in the order of its members."""
    for tar in tars:
        try:
            with tarfile.open(tar, "r:") as archive:
                yield from _clips(archive, tar.absolute())
        except (tarfile.TarError, OSError, EOFError):
            yield {"id": make_id(f"{tar.name}-unreadable"), "audio_filepath": str(tar.absolute())}


def _clips(archive: tarfile.TarFile, tar: Path) -> Iterator[Row]:
    """Members of a clip lie next to each other: one clip is held at a time."""
    key, held = None, Row()
    for member in archive:
        cast(Any, archive).members.clear()  # tarfile keeps every header otherwise
        if not member.isreg():
            continue
        folder, name = PurePosixPath(member.name).parent, PurePosixPath(member.name).name
        its_key = f"{folder}/{name.split('.')[0]}"
        if its_key != key:
            if "audio_filepath" in held:
                yield held
            key, held = its_key, {"id": make_id(f"{tar.name}/{its_key}")}
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SUFFIXES:
            held["audio_filepath"] = member_name(str(tar), member.offset_data, member.size, name)
        elif suffix in (".json", ".txt") and member.size <= _MAX_TEXT:
            held = {**held, **_description(archive, member, suffix)}
    if "audio_filepath" in held:
        yield held


def _description(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> Row:
    """What a text member says; nothing where it is damaged."""
    data = cast(BinaryIO, archive.extractfile(member)).read()
    try:
        if suffix == ".txt":
            words = " ".join(data.decode("utf-8-sig").split())
            return {"text": words} if words else {}
        described = from_json(data)
    except ValueError:
        return {}
    if not isinstance(described, dict):
        return {}
    said = {name: described[name] for name in _KEYS if isinstance(described.get(name), str) and described[name].strip()}
    if said.get("kind", KINDS[0]) not in KINDS:
        del said["kind"]
    return said
