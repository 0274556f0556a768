"""The manifest: one JSON object a line, one line a clip (NeMo's names, so that a NeMo manifest can be read as it is).

Owns the row, its checks, reading and writing. Opens no audio. Paths: absolute, or relative to the manifest's folder and inside it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from uniaudio.atomic import publish_file
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.schema import KINDS

_OPTIONAL_TEXT = ("text", "speaker", "language", "caption", "instruction", "midi", "source", "licence", "split")
_TEXT_KEYS = frozenset((*_OPTIONAL_TEXT, "id", "audio_filepath"))


class ManifestRow(BaseModel):
    """One clip: seconds `offset` to `offset + duration` of a file (duration None: to its end).

    channel: of a file with several, the one to read (None: their mean). kind: what was recorded. text: the words spoken or sung. caption:
    a description of a sound or of music. split: `train` or `valid`; None leaves it to the farm. Keys this class does not know are kept in
    `custom`. A row without `id` gets one from its path and offset.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str = Field(min_length=1)
    audio_filepath: str = Field(min_length=1)
    duration: float | None = Field(default=None, gt=0)
    offset: float = Field(default=0.0, ge=0)
    channel: int | None = Field(default=None, ge=0)
    kind: Literal["speech", "sound", "music", "singing"] = "speech"
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    caption: str | None = None
    instruction: str | None = None
    midi: str | None = None
    source: str | None = None
    licence: str | None = None
    split: str | None = None
    custom: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _keep_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {key: value for key, value in data.items() if key in cls.model_fields}
        unknown = {key: value for key, value in data.items() if key not in cls.model_fields}
        if unknown:
            known["custom"] = {**unknown, **(data.get("custom") or {})}
        if "id" not in known:
            offset = known.get("offset", 0)
            known["id"] = make_id(str(known.get("audio_filepath")), offset if isinstance(offset, int | float) else 0)
        return known

    @field_validator(*_OPTIONAL_TEXT, mode="after")
    @classmethod
    def _blank_means_none(cls, value: str | None) -> str | None:
        return value if value and value.strip() else None


def make_id(name: str, offset: float = 0.0) -> str:
    """A key for a clip: the readable end of its name, and a hash of name and offset. Only letters, digits, `_` and `-`."""
    digest = hashlib.sha256(f"{name}\0{float(offset)}".encode()).hexdigest()[:12]
    stem = PurePosixPath(name)
    stem = stem.with_suffix("") if stem.name else stem  # "/" and "." have no name, and a manifest may say anything
    readable = re.sub(r"[^A-Za-z0-9]+", "-", stem.as_posix()).strip("-")[-80:]
    return f"{readable}-{digest}" if readable else digest


def read_manifest(path: str | Path) -> Iterator[ManifestRow]:
    """Yields the rows in order, `audio_filepath` made absolute. Blank lines are passed over.

    Raises UserError (file, line number, key, remedy) for a file that cannot be read, a line that is not a JSON object, a key with a bad
    value, a relative path that leaves the manifest's folder, and an id seen before.
    """
    path = Path(path)
    seen: set[str] = set()
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                if not line.strip():
                    continue
                row = parse_row(f"{path}:{number}", line, path.absolute().parent)
                if row.id in seen:
                    raise UserError(f"{path}:{number}: id was used before", seen=row.id, remedy="give every row an id of its own")
                seen.add(row.id)
                yield row
    except OSError as error:
        raise UserError(
            f"the manifest {path} cannot be read",
            seen=error.strerror,
            remedy="check the path, or make one: uniaudio corpus manifest DIR --out manifest.jsonl",
        ) from error


def parse_line(place: str, line: bytes) -> dict[str, Any]:
    """One line as a JSON object. Raises UserError that begins with `place` (file and line number)."""
    try:
        data = from_json(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON", seen=str(error), remedy="one JSON object a line, in UTF-8") from error
    if not isinstance(data, dict):
        raise UserError(f"{place}: not a JSON object", seen=type(data).__name__, remedy='write {"audio_filepath": ..., "duration": ...}')
    return data


def is_plain(data: dict[str, Any]) -> bool:
    """Whether a line's object is surely a good row as it is: the test for millions of rows, of which pydantic would take most of the time.

    False says nothing: `parse_row` then decides, and words the fault.
    """
    name = data.get("audio_filepath")
    if type(name) is not str or not name or ".." in name or "\0" in name:
        return False
    for key, value in data.items():
        if key in _TEXT_KEYS:
            if type(value) is not str or not value or value.isspace():
                return False
        elif key in ("duration", "offset"):
            if type(value) not in (int, float) or not (value > 0 or (key == "offset" and value == 0)) or value == inf:
                return False
        elif key == "channel":
            if type(value) is not int or value < 0:
                return False
        elif key == "kind":
            if value not in KINDS:
                return False
        elif key == "custom":
            return False
    return True


def parse_row(place: str, line: bytes, folder: Path) -> ManifestRow:
    """One line of the manifest in `folder` as a row, `audio_filepath` made absolute (an address such as s3://... stays as it is).

    Raises:
        UserError: (place, key, remedy) no JSON object, a key with a bad value, a relative path that leaves `folder`.
    """
    data = parse_line(place, line)
    try:
        row = ManifestRow.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "row"
        seen = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
        raise UserError(f"{place}: key {key}: {first['msg']}", seen=seen, remedy=f"correct or remove {key} in that line") from error
    return row.model_copy(update={"audio_filepath": _inside(place, row.audio_filepath, folder)})


def is_address(name: str) -> bool:
    """Whether `name` is an address (s3://bucket/key, https://host/path), not a path."""
    return "://" in name


def _inside(place: str, name: str, folder: Path) -> str:
    """The absolute path of a row's file; a relative one must stay below `folder`."""
    path = Path(name)
    if is_address(name) or path.is_absolute():
        return name
    if ".." in path.parts or "\0" in name:
        raise UserError(
            f"{place}: key audio_filepath leaves the manifest's folder",
            seen=name,
            remedy="move the manifest above its audio, or write an absolute path",
        )
    return str(folder / path)


def write_manifest(path: str | Path, rows: Iterable[ManifestRow]) -> None:
    """Writes the rows in order, atomically; files below the manifest's folder get relative paths, so that the folder can be moved.

    The bytes depend on the rows only. Raises UserError for an id used twice.
    """
    path = Path(path)
    folder = path.absolute().parent
    seen: set[str] = set()
    with publish_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as handle:
        for row in rows:
            if row.id in seen:
                raise UserError(f"{path}: id was used before", seen=row.id, remedy="give every row an id of its own")
            seen.add(row.id)
            handle.write(_line(row, folder) + "\n")


def _line(row: ManifestRow, folder: Path) -> str:
    data = {key: value for key, value in row.model_dump(exclude={"custom"}).items() if value is not None}
    audio = Path(row.audio_filepath)
    if not is_address(row.audio_filepath) and audio.is_absolute() and audio.is_relative_to(folder) and ".." not in audio.parts:
        data["audio_filepath"] = audio.relative_to(folder).as_posix()
    return json.dumps({**data, **dict(sorted(row.custom.items()))}, ensure_ascii=False, allow_nan=False)
