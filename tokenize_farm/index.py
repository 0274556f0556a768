"""The index of a shard: where each array lies in the tar, and the listing of a folder of shards.

Owns the bytes of NAME.index.npz and the question "which shards exist"; knows nothing of tar headers (shard_writer) or of
array data (shard_reader). N clips, V views; columns in `schema.INDEX_COLUMNS`.
"""

import io
import json
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.schema import INDEX_COLUMNS, KINDS, SCHEMA_VERSION, SPLITS, VIEWS, base_view, parse_shard_name, shard_name

_REBUILD = "delete the shard's three files and run the farm again; it makes only what is missing"


@dataclass(frozen=True)
class ShardIndex:
    """The columns of `schema.INDEX_COLUMNS` as arrays; row i is clip i of the tar."""

    keys: np.ndarray
    speakers: np.ndarray
    kinds: np.ndarray
    languages: np.ndarray
    seconds: np.ndarray
    views: np.ndarray
    offsets: np.ndarray
    shapes: np.ndarray
    json_spans: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def view_number(self, view: str) -> int:
        """Column of `view` in `offsets` and `shapes`; KeyError for a view that no clip of the shard has."""
        if view not in self._view_numbers:
            raise KeyError(f"no view {view!r} in this shard; it has {', '.join(self.views.tolist())}")
        return self._view_numbers[view]

    @cached_property
    def _view_numbers(self) -> dict[str, int]:
        return {view: number for number, view in enumerate(self.views.tolist())}

    def has(self, clip: int, view: str) -> bool:
        """Whether clip number `clip` carries `view`."""
        return view in self.views and bool(self.offsets[clip, self.view_number(view)] >= 0)

    def check(self, tar_bytes: int, *, source: object) -> None:
        """Raises UserError unless every column has its dtype and shape and every span lies inside a tar of `tar_bytes`."""
        clips, views = len(self.keys), len(self.views)
        shapes = {"offsets": (clips, views), "shapes": (clips, views, 2), "json_spans": (clips, 2), "views": (views,)}
        for name in INDEX_COLUMNS:
            if getattr(self, name).shape != shapes.get(name, (clips,)):
                raise UserError(f"{source}: column {name} has the wrong shape", seen=getattr(self, name).shape, remedy=_REBUILD)
        itemsizes = np.array([np.dtype(VIEWS[_known_view(view, source)][0]).itemsize for view in self.views.tolist()], dtype=np.int64)
        lacking = self.offsets < 0
        ends = self.offsets + self.shapes.astype(np.int64).prod(axis=-1) * itemsizes
        bad_array = ~lacking & ((self.shapes <= 0).any(axis=-1) | (ends > tar_bytes))
        bad_json = (self.json_spans < 0).any(axis=-1) | (self.json_spans.sum(axis=-1) > tar_bytes)
        if bad_array.any() or bad_json.any():
            raise UserError(f"{source}: points outside its tar of {tar_bytes} bytes", remedy=_REBUILD)
        if (self.kinds >= len(KINDS)).any():
            raise UserError(f"{source}: unknown kind number", seen=int(self.kinds.max()), allowed=f"0 to {len(KINDS) - 1}", remedy=_REBUILD)


def _known_view(view: str, source: object) -> str:
    try:
        return base_view(view)
    except ValueError as error:
        raise UserError(f"{source}: {error}", remedy=_REBUILD) from error


def index_bytes(index: ShardIndex) -> bytes:
    """The .npz file of an index; the same columns give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(index, name) for name in INDEX_COLUMNS})
    return buffer.getvalue()


def read_index(path: str | Path) -> ShardIndex:
    """Reads NAME.index.npz (never unpickling) and checks it against the size of NAME.tar beside it.

    Raises:
        UserError: a missing, damaged or pickled file, a wrong column, a span outside the tar.
    """
    path = Path(path)
    tar = path.with_name(path.name.removesuffix(".index.npz") + ".tar")
    if not path.is_file():
        raise UserError("no such shard index", seen=path, remedy="give a folder that `uniaudio tokenize` made")
    if not tar.is_file():
        raise UserError("a shard's tar is missing beside its index", seen=tar, remedy=_REBUILD)
    return load_index(path, tar.stat().st_size, source=path)


def load_index(file: Path | IO[bytes], tar_bytes: int, *, source: object) -> ShardIndex:
    """The index in a file or in memory, checked against a tar of `tar_bytes`; UserError names `source`."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            index = ShardIndex(**{f.name: archive[f.name] for f in fields(ShardIndex)})
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{source}: not a readable shard index", seen=error, remedy=_REBUILD) from error
    index.check(tar_bytes, source=source)
    return index


@dataclass(frozen=True, order=True)
class ShardPaths:
    """The three files of one shard."""

    directory: Path
    split: str
    unit: int

    @property
    def name(self) -> str:
        return shard_name(self.split, self.unit)

    @property
    def tar(self) -> Path:
        return self.directory / f"{self.name}.tar"

    @property
    def index(self) -> Path:
        return self.directory / f"{self.name}.index.npz"

    @property
    def sidecar(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def published(self) -> bool:
        """Whether the shard exists: its sidecar is written last."""
        return self.sidecar.is_file()

    def read_sidecar(self) -> dict:
        """The sidecar's fields; UserError for damaged JSON or another schema version."""
        try:
            sidecar = json.loads(self.sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError("a shard's sidecar cannot be read", seen=f"{self.sidecar}: {error}", remedy=_REBUILD) from error
        version = sidecar.get("schema_version") if isinstance(sidecar, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(f"{self.sidecar}: of another schema version", seen=version, allowed=SCHEMA_VERSION, remedy="tokenize again")
        return sidecar


def list_shards(directory: str | Path, split: str | None = None) -> list[ShardPaths]:
    """Published shards of `split` (of every split where None), sorted by split and unit.

    Raises:
        UserError: no such folder, or an unknown split.
    """
    directory = Path(directory)
    if split is not None and split not in SPLITS:
        raise UserError("unknown split", seen=split, allowed=", ".join(SPLITS))
    if not directory.is_dir():
        raise UserError("no such folder of shards", seen=directory, remedy="make it with `uniaudio tokenize FARM.yaml`")
    found = []
    for path in directory.glob("*.json"):
        try:
            its_split, unit = parse_shard_name(path.stem)
        except ValueError:
            continue  # farm.json and other neighbours
        if split in (None, its_split):
            found.append(ShardPaths(directory, its_split, unit))
    return sorted(found)
