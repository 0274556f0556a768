"""Making and updating merged indexes (`index_table.py`): in a folder or an object store, reading only the shards that are new.

Where the file of a folder is missing or older than its shards, training works the difference out in memory by the same means.
"""

import io
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.index import ShardIndex, ShardPaths, list_shards, load_index, read_index
from uniaudio.tokenize_farm.index_merge import Part, difference, merge, part_of, read_part
from uniaudio.tokenize_farm.index_table import REMEDY, IndexTable, read_table, table_path, write_table
from uniaudio.tokenize_farm.schema import SPLITS, shard_name

if TYPE_CHECKING:
    from uniaudio.tokenize_farm.storage import Store


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


def check_table(directory: str | Path, split: str, *, against_shards: bool = True) -> None:
    """The merged index of a folder, where there is one, against the shards that it names, all read anew: a hash over it would cost what
    memory maps save, so a byte that changed is found by this alone.

    Raises:
        UserError: it cannot be read, says something else than its shards, or names shards that are gone or were made again.
    """
    directory = Path(directory)
    path = table_path(directory, split)
    if not path.is_file():
        return
    table, _ = read_table(path, str(directory))
    if not against_shards:
        return
    published, parts = {shard.unit: shard for shard in list_shards(directory, split)}, []
    for unit, digest in zip(table.units.tolist(), table.index_sha256):
        sidecar = published[unit].read_sidecar() if unit in published else {}
        if sidecar.get("index_sha256") != digest.tobytes().hex():
            seen = shard_name(split, unit)
            raise UserError(f"{path}: names a shard that is gone or was made again", seen=seen, remedy=REMEDY)
        parts.append(read_part(unit, read_index(published[unit].index), sidecar))
    if column := difference(table, merge(str(directory), split, parts)):
        raise UserError(f"{path}: says something else than its shards", seen=f"column {column}", remedy=REMEDY)


def _update(place: _Place, split: str, old: IndexTable | None) -> tuple[IndexTable, int]:
    known = {} if old is None else {int(unit): number for number, unit in enumerate(old.units)}
    parts: list[Part] = []
    runs: list[list[int]] = []  # first and last + 1 of shards of the old table, beside the parts read anew
    order: list[Part | list[int]] = []
    for unit in place.units(split):
        sidecar = place.sidecar(split, unit)
        number = known.get(unit)
        if old is None or number is None or old.index_sha256[number].tobytes().hex() != sidecar.get("index_sha256"):
            parts.append(read_part(unit, place.read_index(split, unit, sidecar), sidecar))
            order.append(parts[-1])
        elif runs and order[-1] is runs[-1] and runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
            order.append(runs[-1])
    if old is not None and not parts and runs == [[0, old.num_shards]]:
        return old, 0
    made = [part_of(old, *entry) if isinstance(entry, list) and old is not None else entry for entry in order]
    return merge(place.address, split, [part for part in made if isinstance(part, Part)]), len(parts)
