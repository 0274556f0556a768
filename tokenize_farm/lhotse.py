"""Lhotse's manifests as rows, read without the package: its cuts, and the recordings and supervisions that its recipes write.

Field names follow lhotse 1.x (`MonoCut.to_dict`, `SupervisionSegment.to_dict`, `Recording.to_dict`). Of a recording's sources, files and
URLs are read; commands are never run.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from uniaudio.errors import UserError

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[Row]]

_KEPT = 1_000_000  # recordings held while their supervisions are looked for
_END_MATTERS = 0.01  # seconds by which a segment may end before its recording and still be the whole of it


def is_cut(data: Row) -> bool:
    """Whether a line is one of Lhotse's cuts."""
    return "recording" in data and ("supervisions" in data or str(data.get("type", "")).endswith("Cut"))


def cut_rows(cuts: Iterable[Row], folder: Path) -> Iterator[Row]:
    """A row for each supervision of each cut; for a cut without any, the cut itself. Relative paths are below `folder`.

    Raises:
        UserError: a cut that is no MonoCut, a recording that is no file.
    """
    for cut in cuts:
        if not is_cut(cut):
            raise UserError("a line among Lhotse cuts is none", seen=cut.get("id"), remedy="write single-channel cuts of one recording")
        channel = cut.get("channel", 0)
        place = {"audio_filepath": audio_path(cut["recording"], folder), **_channel(cut["recording"], channel)}
        start, supervisions = float(cut.get("start", 0.0)), cut.get("supervisions") or []
        if not supervisions:
            yield {"id": str(cut["id"]), **place, "offset": start, "duration": float(cut["duration"]), **_custom(cut)}
        for number, segment in enumerate(supervisions):
            name = str(cut["id"]) if len(supervisions) == 1 else f"{cut['id']}-{number:04d}"
            begin = max(0.0, float(segment.get("start", 0.0)))
            length = min(float(segment["duration"]), float(cut["duration"]) - begin)
            yield {"id": name, **place, "offset": round(start + begin, 6), "duration": round(length, 6), **_custom(cut), **_words(segment)}


def recipe_rows(recordings: Iterable[Path], folder: Path, read: Reader) -> Iterator[Row]:
    """Rows of the `*recordings*` files of a folder, each with the `*supervisions*` file of the same name where there is one."""
    for path in recordings:
        beside = path.with_name(path.name.replace("recordings", "supervisions"))
        if not beside.is_file():
            for recording in read(path):
                yield {
                    "id": str(recording["id"]),
                    "audio_filepath": audio_path(recording, folder),
                    "duration": float(recording["duration"]),
                }
            continue
        yield from _joined(read(path), read(beside), folder, beside)


def _joined(recordings: Iterator[Row], segments: Iterator[Row], folder: Path, source: Path) -> Iterator[Row]:
    """Both files name recordings in about the same order, so a window of them is enough."""
    window: OrderedDict[str, Row] = OrderedDict()
    for segment in segments:
        wanted = segment["recording_id"]
        while wanted not in window:
            recording = next(recordings, None)
            if recording is None:
                remedy = "sort both files alike, or make cuts of them: lhotse cut simple -r RECORDINGS -s SUPERVISIONS cuts.jsonl.gz"
                raise UserError(f"{source}: a segment's recording is not found near it", seen=wanted, remedy=remedy)
            window[recording["id"]] = recording
            if len(window) > _KEPT:
                window.popitem(last=False)
        recording = window[wanted]
        channel = segment.get("channel", 0)
        place = {"audio_filepath": audio_path(recording, folder), **_channel(recording, channel)}
        whole = abs(float(segment["duration"]) - float(recording["duration"])) < _END_MATTERS
        part = {} if whole else {"offset": float(segment["start"])}
        yield {"id": str(segment["id"]), **place, **part, "duration": float(segment["duration"]), **_words(segment)}


def audio_path(recording: Row, folder: Path) -> str:
    """The file or address of a recording's first source.

    Raises:
        UserError: it has none that can be read.
    """
    for source in recording.get("sources", []):
        if source.get("type") == "url":
            return str(source["source"])
        if source.get("type") == "file":
            path = Path(source["source"])
            return str(path if path.is_absolute() else folder / path)
    kinds = ", ".join(str(source.get("type")) for source in recording.get("sources", [])) or "none"
    raise UserError(f"recording {recording.get('id')} has no source that is read", seen=kinds, allowed="file, url")


def _channel(recording: Row, channel: Any) -> Row:
    """Of a recording of several channels, the segment's (the first of several)."""
    first = channel[0] if isinstance(channel, list) else channel
    several = sum(len(source.get("channels", [])) for source in recording.get("sources", [])) > 1
    return {"channel": int(first)} if several else {}


def _custom(item: Row) -> Row:
    """What a cut's or a segment's `custom` says of kind, caption and split."""
    custom = item.get("custom") or {}
    return {key: custom[key] for key in ("kind", "caption", "instruction", "split", "midi") if isinstance(custom.get(key), str)}


def _words(segment: Row) -> Row:
    known = {key: str(segment[key]) for key in ("text", "speaker", "language") if segment.get(key)}
    return {**known, **_custom(segment)}
