"""What a split's shards hold, as columns: the indexes of all shards side by side. Reads no array data.

N clips, in the order of the shards' names and of the clips inside them. That order numbers the clips everywhere in the data path.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.index import ShardIndex, ShardPaths, list_shards, read_index


@dataclass(frozen=True)
class ClipTable:
    """Columns over the clips of a split.

    paths, indexes: one entry a shard. shard, place: (N,) the clip's shard and its number inside. kinds: (N,) position in schema.KINDS.
    speakers: (N,) int32, -1 where unknown. rows, columns: view -> (N,) int32, 0 where the clip lacks the view.
    """

    directory: Path
    split: str
    paths: tuple[ShardPaths, ...]
    indexes: tuple[ShardIndex, ...]
    shard: np.ndarray
    place: np.ndarray
    kinds: np.ndarray
    speakers: np.ndarray
    rows: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, clip: int) -> str:
        """`train-000003/KEY`: names the clip in messages and logs."""
        shard = int(self.shard[clip])
        return f"{self.paths[shard].name}/{self.indexes[shard].keys[self.place[clip]]}"

    def rows_of(self, view: str) -> np.ndarray:
        """(N,) rows of `view`, zeros where no clip has it."""
        return self.rows[view] if view in self.rows else np.zeros(len(self), np.int32)


def load_clips(directory: str | Path, split: str) -> ClipTable:
    """Reads the index of every published shard of `split`.

    Raises:
        UserError: no folder, no shard of the split, or a damaged index.
    """
    paths = tuple(list_shards(directory, split))
    indexes = tuple(read_index(path.index) for path in paths)
    counts = np.array([len(index) for index in indexes], np.int64)
    if counts.sum() == 0:
        raise UserError(
            f"data.shards holds no clip of the split {split}", seen=directory, remedy="run `uniaudio tokenize`, or set data.shards"
        )
    views = sorted({view for index in indexes for view in index.views.tolist()})
    shapes = {view: _concatenate([_shape_column(index, view) for index in indexes]) for view in views}
    names, numbers = np.unique(_concatenate([index.speakers for index in indexes]), return_inverse=True)
    unknown = names[numbers] == ""
    return ClipTable(
        directory=Path(directory),
        split=split,
        paths=paths,
        indexes=indexes,
        shard=np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        place=_concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        kinds=_concatenate([index.kinds for index in indexes]),
        speakers=np.where(unknown, -1, numbers).astype(np.int32),
        rows={view: np.ascontiguousarray(shape[:, 0]) for view, shape in shapes.items()},
        columns={view: np.ascontiguousarray(shape[:, 1]) for view, shape in shapes.items()},
    )


def _shape_column(index: ShardIndex, view: str) -> np.ndarray:
    if view not in index.views:
        return np.zeros((len(index), 2), np.int32)
    return index.shapes[:, index.view_number(view)]


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)
