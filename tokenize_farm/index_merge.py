"""Columns of a merged index (`index_table.py`) from those of its parts: shards read anew, and runs of shards of an older merged index.

Pure functions of arrays; where the parts come from is `index_build.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uniaudio.tokenize_farm.index import ShardIndex
from uniaudio.tokenize_farm.index_table import IndexTable
from uniaudio.tokenize_farm.schema import KINDS

FRAME_VIEW = "audio"  # clips without it cannot prompt
_NUMBERED = ("speakers", "speaker_names", "voices", "voice_clips", "voice_starts")  # columns that follow from how speakers are numbered


@dataclass(frozen=True)
class Part:
    """Clips of shards that lie together: of the old table, or of one shard read anew. Columns as in the table."""

    shards: dict[str, np.ndarray]  # units, tar_bytes, tar_sha256, index_sha256, counts
    clips: dict[str, np.ndarray]  # kinds, seconds, key_lengths
    speakers: np.ndarray  # numbers among the names, -1 unknown
    names: Sequence[str]
    key_bytes: np.ndarray
    views: tuple[str, ...]
    places: dict[str, np.ndarray]  # offsets, rows, columns: (V, clips)


def read_part(unit: int, index: ShardIndex, sidecar: Mapping[str, object]) -> Part:
    """One shard, from its own index and sidecar."""
    names, numbers = np.unique(index.speakers, return_inverse=True)
    keys = [key.encode() for key in index.keys.tolist()]
    return Part(
        shards={
            "units": np.array([unit], np.int64),
            "tar_bytes": np.array([sidecar["tar_bytes"]], np.int64),
            "tar_sha256": _digest(sidecar["tar_sha256"]),
            "index_sha256": _digest(sidecar["index_sha256"]),
            "counts": np.array([len(index)], np.int64),
        },
        clips={"kinds": index.kinds, "seconds": index.seconds, "key_lengths": np.array([len(key) for key in keys], np.int64)},
        speakers=np.where(index.speakers == "", -1, numbers).astype(np.int32),
        names=names.tolist(),
        key_bytes=np.frombuffer(b"".join(keys), np.uint8),
        views=tuple(index.views.tolist()),
        places={
            "offsets": np.ascontiguousarray(index.offsets.T),
            "rows": np.ascontiguousarray(index.shapes[:, :, 0].T),
            "columns": np.ascontiguousarray(index.shapes[:, :, 1].T).astype(np.uint16),
        },
    )


def _digest(value: object) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(str(value)), np.uint8)[None]


def part_of(old: IndexTable, first: int, stop: int) -> Part:
    """Shards first..stop-1 of a merged index."""
    clips = slice(int(old.shard_starts[first]), int(old.shard_starts[stop]))
    shards = {name: old.columns[name][first:stop] for name in ("units", "tar_bytes", "tar_sha256", "index_sha256")}
    starts = old.key_starts[clips.start : clips.stop + 1]
    return Part(
        shards=shards | {"counts": np.diff(old.shard_starts[first : stop + 1])},
        clips={"kinds": old.kinds[clips], "seconds": old.seconds[clips], "key_lengths": np.diff(starts)},
        speakers=old.speakers[clips],
        names=_names(old),
        key_bytes=old.key_bytes[int(starts[0]) : int(starts[-1])],
        views=old.views,
        places={name: old.columns[name][:, clips] for name in ("offsets", "rows", "columns")},
    )


def _names(table: IndexTable) -> list[str]:
    return table.speaker_names.tobytes().decode(errors="replace").split("\n") if len(table.speaker_names) else []


def merge(directory: str, split: str, parts: Sequence[Part]) -> IndexTable:
    """The merged index of parts in the order of their units; `directory` is where its shards lie."""
    views = tuple(sorted({view for part in parts for view in part.views}))
    columns = {name: _cat([part.shards[name] for part in parts]) for name in ("units", "tar_bytes", "tar_sha256", "index_sha256")}
    columns["shard_starts"] = _starts(_cat([part.shards["counts"] for part in parts]))
    columns |= {name: _cat([part.clips[name] for part in parts]) for name in ("kinds", "seconds")}
    columns["key_starts"] = _starts(_cat([part.clips["key_lengths"] for part in parts]))
    columns["key_bytes"] = _cat([part.key_bytes for part in parts])
    clips = len(columns["kinds"])
    for name, (kind, lacking) in {"offsets": (np.int64, -1), "rows": (np.int32, 0), "columns": (np.uint16, 0)}.items():
        columns[name] = np.full((len(views), clips), lacking, kind)
        end = 0
        for part in parts:
            start, end = end, end + len(part.speakers)
            for number, view in enumerate(part.views):
                columns[name][views.index(view), start:end] = part.places[name][number]
    numbers: dict[str, int] = {}
    columns["speakers"] = _cat([_renumber(part, numbers) for part in parts])
    columns["speaker_names"] = np.frombuffer("\n".join(numbers).encode(), np.uint8)
    columns |= _voices(columns, views) if FRAME_VIEW in views else _no_voices(clips)
    columns |= _groups(columns, views)
    return IndexTable(directory, split, views, columns)


def difference(table: IndexTable, other: IndexTable) -> str | None:
    """What two merged indexes of the same shards say differently: the first such column, or `header`; None where they agree.

    Speakers may be numbered otherwise in each: that follows from which shards came first.
    """
    if (table.split, table.views) != (other.split, other.views):
        return "header"
    if name := _unequal(table, {name: column for name, column in other.columns.items() if name not in _NUMBERED}):
        return name
    names, numbers = _names(table), {name: number for number, name in enumerate(_names(other))}
    if len(names) != len(numbers) or set(names) != numbers.keys():
        return "speaker_names"
    if table.speakers.shape != other.speakers.shape or (len(table) and not -1 <= table.speakers.min() <= table.speakers.max() < len(names)):
        return "speakers"
    if not np.array_equal(np.array([*(numbers[name] for name in names), -1])[table.speakers], other.speakers):
        return "speakers"
    return _unequal(table, _voices(table.columns, table.views) if FRAME_VIEW in table.views else _no_voices(len(table)))


def _unequal(table: IndexTable, columns: Mapping[str, np.ndarray]) -> str | None:
    """The first of `columns` that the table has otherwise."""
    return next((name for name, column in columns.items() if not _equal(table.columns[name], column)), None)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def _renumber(part: Part, numbers: dict[str, int]) -> np.ndarray:
    """The part's speakers as numbers of the whole table; new names are added to `numbers`."""
    used = np.unique(part.speakers[part.speakers >= 0])
    table = np.full(len(part.names) + 1, -1, np.int32)  # the last entry is what -1 stands for
    for number in used.tolist():
        table[number] = numbers.setdefault(part.names[number].replace("\n", " "), len(numbers))
    return table[part.speakers]


def _voices(columns: Mapping[str, np.ndarray], views: tuple[str, ...]) -> dict[str, np.ndarray]:
    usable = (columns["speakers"] >= 0) & (columns["rows"][views.index(FRAME_VIEW)] > 0)
    voice = np.where(usable, columns["speakers"].astype(np.int64) * len(KINDS) + columns["kinds"], -1)
    found, dense = np.unique(voice, return_inverse=True)
    voices = (dense - int(len(found) > 0 and found[0] < 0)).astype(np.int32)
    order = np.argsort(voices, kind="stable")[np.count_nonzero(voices < 0) :]
    return {"voices": voices, "voice_clips": order.astype(np.int32), "voice_starts": _starts(np.bincount(voices[order]).astype(np.int64))}


def _no_voices(clips: int) -> dict[str, np.ndarray]:
    return {"voices": np.full(clips, -1, np.int32), "voice_clips": np.zeros(0, np.int32), "voice_starts": np.zeros(1, np.int64)}


def _groups(columns: Mapping[str, np.ndarray], views: tuple[str, ...]) -> dict[str, np.ndarray]:
    sizes = np.diff(columns["voice_starts"])
    voices = columns["voices"]
    company = np.zeros(len(voices), bool)
    company[voices >= 0] = sizes[voices[voices >= 0]] > 1
    mask = np.zeros(len(voices), np.uint64)
    for number in range(len(views)):
        mask |= (columns["rows"][number] > 0).astype(np.uint64) << np.uint64(number + 8)
    alike = mask | (columns["kinds"].astype(np.uint64) << np.uint64(1)) | company
    found, groups = np.unique(alike, return_inverse=True)
    narrowest = np.full((len(found), len(views)), np.iinfo(np.uint16).max, np.uint16)
    widest = np.zeros_like(narrowest)
    for number in range(len(views)):
        np.minimum.at(narrowest[:, number], groups, columns["columns"][number])
        np.maximum.at(widest[:, number], groups, columns["columns"][number])
    return {
        "groups": groups.astype(np.uint16),
        "group_kinds": ((found >> np.uint64(1)) & np.uint64(127)).astype(np.uint8),
        "group_views": found >> np.uint64(8),
        "group_company": (found & np.uint64(1)).astype(np.uint8),
        "group_clips": np.bincount(groups, minlength=len(found)).astype(np.int64),
        "group_seconds": np.bincount(groups, weights=columns["seconds"], minlength=len(found)),
        "narrowest": narrowest,
        "widest": widest,
    }


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _cat(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
