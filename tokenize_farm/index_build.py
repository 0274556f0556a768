"""Making and updating merged indexes (`index_table.py`): in a folder or an object store, reading only the shards that are new.

Where the file of a folder is missing or older than its shards, training works the difference out in memory by the same means.
"""

import io
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.index import ShardIndex, ShardPaths, list_shards, load_index, read_index
from uniaudio.tokenize_farm.index_table import IndexTable, read_table, table_path, write_table
from uniaudio.tokenize_farm.schema import KINDS, SPLITS, shard_name

if TYPE_CHECKING:
    from uniaudio.tokenize_farm.storage import Store

FRAME_VIEW = "audio"  # clips without it cannot prompt


@dataclass(frozen=True)
class _Part:
    """Clips of shards that lie together: of the old table, or of one shard read anew. Columns as in the table."""

    shards: dict[str, np.ndarray]  # units, tar_bytes, tar_sha256, index_sha256, counts
    clips: dict[str, np.ndarray]  # kinds, seconds, key_lengths
    speakers: np.ndarray  # numbers among the names, -1 unknown
    names: Sequence[str]
    key_bytes: np.ndarray
    views: tuple[str, ...]
    places: dict[str, np.ndarray]  # offsets, rows, columns: (V, clips)


class _Place(Protocol):
    """Where shards lie, as far as indexing asks."""

    address: str

    def units(self, split: str) -> list[int]: ...
    def sidecar(self, split: str, unit: int) -> dict: ...
    def read_index(self, split: str, unit: int, sidecar: Mapping[str, object]) -> ShardIndex: ...


class _Folder:
    def __init__(self, directory: Path) -> None:
        self.directory, self.address = directory, str(directory)

    def units(self, split: str) -> list[int]:
        return [shard.unit for shard in list_shards(self.directory, split)]

    def sidecar(self, split: str, unit: int) -> dict:
        return ShardPaths(self.directory, split, unit).read_sidecar()

    def read_index(self, split: str, unit: int, sidecar: Mapping[str, object]) -> ShardIndex:
        return read_index(ShardPaths(self.directory, split, unit).index)


class _Objects:
    """An object store: sidecars and indexes are fetched into memory, tars left alone."""

    def __init__(self, store: "Store") -> None:
        self.store, self.address = store, store.address
        self._names = [name for name in store.names() if "/" not in name]

    def units(self, split: str) -> list[int]:
        found = re.compile(rf"{split}-(\d{{6,}})\.json")
        return sorted(int(match[1]) for name in self._names if (match := found.fullmatch(name)))

    def sidecar(self, split: str, unit: int) -> dict:
        return json.loads(self.store.read(f"{shard_name(split, unit)}.json"))

    def read_index(self, split: str, unit: int, sidecar: Mapping[str, object]) -> ShardIndex:
        name = f"{shard_name(split, unit)}.index.npz"
        return load_index(io.BytesIO(self.store.read(name)), int(str(sidecar["tar_bytes"])), source=f"{self.address}/{name}")


def index_folder(directory: str | Path) -> dict[str, tuple[IndexTable, int]]:
    """Writes the merged index of every split of a folder; split -> (table, shards read anew).

    Raises:
        UserError: no folder, a damaged shard, a full disk.
    """
    directory, made = Path(directory), {}
    for split in SPLITS:
        if not list_shards(directory, split):
            continue
        path = table_path(directory, split)
        path.parent.mkdir(exist_ok=True)
        mtime = directory.stat().st_mtime_ns
        table, read = current_table(directory, split)
        _write(table, path, mtime)
        made[split] = table, read
    return made


def index_store(store: "Store") -> dict[str, tuple[IndexTable, int]]:
    """The same in an object store, where training cannot do without it.

    Raises:
        OSError: the store cannot be reached.
    """
    place, made = _Objects(store), {}
    with tempfile.TemporaryDirectory(prefix="uniaudio-index-") as scratch:
        for split in SPLITS:
            if not place.units(split):
                continue
            path, name, old = table_path(scratch, split), f"index/{split}.safetensors", None
            path.parent.mkdir(exist_ok=True)
            try:
                path.write_bytes(store.read(name))
                old, _ = read_table(path, store.address)
            except FileNotFoundError:
                pass  # the first time
            made[split] = table, _ = _update(place, split, old)
            _write(table, path, 0)
            store.put(name, path)
    return made


def _write(table: IndexTable, path: Path, mtime: int) -> None:
    try:
        write_table(table, path, mtime=mtime)
    except OSError as error:
        raise UserError("the merged index cannot be written", seen=error, remedy="free space, or correct the folder's rights") from error


def current_table(directory: str | Path, split: str) -> tuple[IndexTable, int]:
    """The table of the shards published now, and how many of them were read for it: those that the file lacks or that have changed.

    Writes nothing. A file as new as its folder is trusted without a look at the shards.

    Raises:
        UserError: no folder, a damaged sidecar, index or merged index.
    """
    directory, old = Path(directory), None
    path = table_path(directory, split)
    if path.is_file():
        old, meta = read_table(path, str(directory))
        if meta["mtime"] == str(directory.stat().st_mtime_ns):
            return old, 0
    return _update(_Folder(directory), split, old)


def _update(place: _Place, split: str, old: IndexTable | None) -> tuple[IndexTable, int]:
    known = {} if old is None else {int(unit): number for number, unit in enumerate(old.units)}
    parts: list[_Part] = []
    runs: list[list[int]] = []  # first and last + 1 of shards of the old table, beside the parts read anew
    order: list[_Part | list[int]] = []
    for unit in place.units(split):
        sidecar = place.sidecar(split, unit)
        number = known.get(unit)
        if old is None or number is None or old.index_sha256[number].tobytes().hex() != sidecar.get("index_sha256"):
            parts.append(_read_part(unit, place.read_index(split, unit, sidecar), sidecar))
            order.append(parts[-1])
        elif runs and order[-1] is runs[-1] and runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
            order.append(runs[-1])
    if old is not None and not parts and runs == [[0, old.num_shards]]:
        return old, 0
    made = [_old_part(old, *entry) if isinstance(entry, list) and old is not None else entry for entry in order]
    return _merge(place.address, split, [part for part in made if isinstance(part, _Part)]), len(parts)


def _read_part(unit: int, index: ShardIndex, sidecar: Mapping[str, object]) -> _Part:
    names, numbers = np.unique(index.speakers, return_inverse=True)
    keys = [key.encode() for key in index.keys.tolist()]
    return _Part(
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


def _old_part(old: IndexTable, first: int, stop: int) -> _Part:
    clips = slice(int(old.shard_starts[first]), int(old.shard_starts[stop]))
    shards = {name: old.columns[name][first:stop] for name in ("units", "tar_bytes", "tar_sha256", "index_sha256")}
    starts = old.key_starts[clips.start : clips.stop + 1]
    return _Part(
        shards=shards | {"counts": np.diff(old.shard_starts[first : stop + 1])},
        clips={"kinds": old.kinds[clips], "seconds": old.seconds[clips], "key_lengths": np.diff(starts)},
        speakers=old.speakers[clips],
        names=_names(old),
        key_bytes=old.key_bytes[int(starts[0]) : int(starts[-1])],
        views=old.views,
        places={name: old.columns[name][:, clips] for name in ("offsets", "rows", "columns")},
    )


def _names(table: IndexTable) -> list[str]:
    return table.speaker_names.tobytes().decode().split("\n") if len(table.speaker_names) else []


def _merge(directory: str, split: str, parts: Sequence[_Part]) -> IndexTable:
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


def _renumber(part: _Part, numbers: dict[str, int]) -> np.ndarray:
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
