"""What a split's shards hold, as columns: the merged index of each dataset, one behind another. Reads no array data.

A dataset is one folder (or URL) of `data.shards`. N clips and S shards are numbered through all datasets, in the order of `data.shards`,
of the shards' units and of the clips inside them. The columns are memory maps: only what a block of shards touches is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np

from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.data.draw import below
from uniaudio.pretrain.data.remote import Remote
from uniaudio.tokenize_farm.index_build import current_table
from uniaudio.tokenize_farm.index_table import IndexTable, read_table, table_path

logger = get_logger(__name__)


class NoClips(UserError):
    """Shards of a split hold no clip at all."""


@dataclass(frozen=True)
class ClipTable:
    """The tables of a split's datasets, and the questions that the plan asks of clips by number."""

    split: str
    names: tuple[str, ...]
    tables: tuple[IndexTable, ...]

    def __len__(self) -> int:
        return int(self.first_clips[-1])

    @cached_property
    def first_clips(self) -> np.ndarray:
        """(datasets + 1,) int64."""
        return np.cumsum([0, *map(len, self.tables)], dtype=np.int64)

    @cached_property
    def first_shards(self) -> np.ndarray:
        """(datasets + 1,) int64."""
        return np.cumsum([0, *(table.num_shards for table in self.tables)], dtype=np.int64)

    @property
    def num_shards(self) -> int:
        return int(self.first_shards[-1])

    @cached_property
    def views(self) -> tuple[str, ...]:
        """Every view that some clip has."""
        return tuple(sorted({view for table in self.tables for view in table.views}))

    def dataset_of(self, clips: np.ndarray) -> np.ndarray:
        """(clips,) int64 number of each clip's dataset."""
        return np.searchsorted(self.first_clips, clips, side="right") - 1

    def clips_of_shards(self, shards: np.ndarray) -> np.ndarray:
        """Numbers of all clips of the shards given, ascending within each, in the order of the shards; int64."""
        dataset = np.searchsorted(self.first_shards, shards, side="right") - 1
        parts = []
        for number, shard in zip(dataset.tolist(), (shards - self.first_shards[dataset]).tolist()):
            start, stop = self.tables[number].shard_starts[shard : shard + 2]
            parts.append(np.arange(start, stop, dtype=np.int64) + self.first_clips[number])
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def shard_of(self, clips: np.ndarray) -> np.ndarray:
        """(clips,) int64 shard of each clip."""
        shards = np.empty(len(clips), np.int64)
        for number, inside, local in self._by_dataset(clips):
            shards[inside] = self.tables[number].shard_of(local) + self.first_shards[number]
        return shards

    def column(self, name: str, clips: np.ndarray) -> np.ndarray:
        """(clips,) a column that is per clip: kinds, groups, seconds; voices, as numbers within the clip's dataset."""
        if len(self.tables) == 1:
            return self.tables[0].columns[name][clips]
        values = np.empty(len(clips), self.tables[0].columns[name].dtype)
        for number, inside, local in self._by_dataset(clips):
            values[inside] = self.tables[number].columns[name][local]
        return values

    def of_view(self, name: str, view: str, clips: np.ndarray) -> np.ndarray:
        """(clips,) int64 rows, columns or offsets of a view; rows and columns 0, offsets -1 where a clip lacks it."""
        values = np.full(len(clips), -1 if name == "offsets" else 0, np.int64)
        for number, inside, local in self._by_dataset(clips):
            if (place := self.tables[number].view_numbers.get(view)) is not None:
                values[inside] = self.tables[number].columns[name][place][local]
        return values

    def draw_company(self, clips: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """(clips,) int64 another clip of the same voice (speaker and kind) for each; every clip must have one in its dataset."""
        drawn = np.empty(len(clips), np.int64)
        for number, inside, local in self._by_dataset(clips):
            table = self.tables[number]
            voices = table.voices[local]
            first, sizes = table.voice_starts[voices], table.voice_starts[voices + 1] - table.voice_starts[voices]
            at = first + below(hashes[inside], sizes - 1)
            found = table.voice_clips[at]  # ascending by clip: from its own place on, one further
            drawn[inside] = np.where(found < local, found, table.voice_clips[at + 1]) + self.first_clips[number]
        return drawn

    def table_of(self, shard: int) -> tuple[IndexTable, int]:
        """The table that a shard belongs to, and its number there."""
        number = int(np.searchsorted(self.first_shards, shard, side="right")) - 1
        return self.tables[number], shard - int(self.first_shards[number])

    def shard_name(self, shard: int) -> str:
        """`train-000003`; where there are several datasets, `NAME/train-000003`."""
        table, place = self.table_of(shard)
        name = table.shard_name(place)
        return f"{self.names[self.tables.index(table)]}/{name}" if len(self.tables) > 1 else name

    def key(self, clip: int) -> str:
        """`train-000003/KEY`: names the clip in messages and logs."""
        number = int(self.dataset_of(np.array([clip]))[0])
        local = clip - int(self.first_clips[number])
        return f"{self.shard_name(int(self.shard_of(np.array([clip]))[0]))}/{self.tables[number].key(local)}"

    def _by_dataset(self, clips: np.ndarray) -> list[tuple[int, np.ndarray | slice, np.ndarray]]:
        """(dataset, places among `clips`, numbers inside the dataset) of every dataset that occurs."""
        if len(self.tables) == 1:
            return [(0, slice(None), clips)]
        dataset = self.dataset_of(clips)
        found = [(int(number), np.flatnonzero(dataset == number)) for number in np.unique(dataset)]
        return [(number, places, clips[places] - self.first_clips[number]) for number, places in found]


def dataset_names(places: Sequence[str]) -> tuple[str, ...]:
    """The last part of each folder or URL: what `data.mix.datasets` and the metrics call it. UserError where two are alike."""
    names = tuple(place.rstrip("/").rsplit("/", 1)[-1] for place in places)
    if len(set(names)) != len(names):
        raise UserError("two folders of data.shards have one name", seen=", ".join(places), remedy="rename one: it names the dataset")
    return names


def load_clips(places: str | Path | Sequence[str], split: str, remotes: Mapping[str, Remote] = MappingProxyType({})) -> ClipTable:
    """Opens the merged index of every dataset; what the index of a folder lacks is worked out in memory.

    `remotes`: what fetches from each place that is an address; its index must be there.

    Raises:
        UserError: no folder, no shard of the split (NoClips), or a damaged index.
    """
    places = (str(places),) if isinstance(places, str | Path) else tuple(map(str, places))
    names, tables = dataset_names(places), []
    for place in places:
        if place in remotes:
            tables.append(_remote_table(place, remotes[place], split))
            continue
        table, read = current_table(place, split)
        if read:
            logger.info("%s: %d shards are not in its merged index: read one by one; `uniaudio shards index %s`", place, read, place)
        tables.append(table)
    if not any(map(len, tables)):
        raise NoClips(
            f"data.shards holds no clip of the split {split}",
            seen=", ".join(places),
            remedy="run `uniaudio tokenize` (what goes to the split valid: docs/data.md), or set data.shards",
        )
    found = [(name, table) for name, table in zip(names, tables) if len(table)]
    return ClipTable(split, tuple(name for name, _ in found), tuple(table for _, table in found))


def _remote_table(place: str, remote: Remote, split: str) -> IndexTable:
    path = table_path(remote.refresh(), split)
    if not path.is_file():
        raise UserError(
            f"no merged index of the split {split} at this address",
            seen=f"{place}/index/{split}.safetensors",
            remedy=f"run `uniaudio shards index {place}`, or index the folder before it is copied there",
        )
    return read_table(path, str(remote.folder))[0]
