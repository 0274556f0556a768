"""Work units: a pure function of the manifest, the seed and the config; the same manifest makes the same units everywhere.

Owns the cutting into units, the keys of clips and the fingerprint of a unit. A plan holds 24 bytes a row and makes a unit only when it is
asked for; rows reach the workers as the manifest's own lines. Reads no audio.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow, make_id, parse_row
from uniaudio.tokenize_farm.scan import first_duplicate, hold_out, scan_manifest
from uniaudio.tokenize_farm.schema import SCHEMA_VERSION, SPLITS, shard_name, valid_key


@dataclass(frozen=True)
class WorkUnit:
    """The rows of one shard, as lines of a manifest; paths in them are relative to `root`.

    fingerprint: 16 hex digits over all that decides the shard's bytes, except the recordings themselves. poison: places in `rows` of what
    killed every worker that touched it.
    """

    split: str
    number: int
    fingerprint: str
    root: str
    lines: tuple[bytes, ...]
    poison: tuple[int, ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.root)

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number)

    @cached_property
    def rows(self) -> tuple[ManifestRow, ...]:
        return tuple(parse_row(f"unit {self.name}", line, self.folder) for line in self.lines)

    def __getstate__(self) -> dict[str, object]:
        """Travels without the parsed rows."""
        return {key: value for key, value in self.__dict__.items() if key != "rows"}


def clip_key(row: ManifestRow) -> str:
    """The clip's key in its shard: the row's id where that is a valid key, else a readable one with a hash."""
    return row.id if valid_key(row.id) else make_id(row.id)


class Plan:
    """All units of a farm, train first, rows in the manifest's order; unit i is made by `plan[i]`.

    Args:
        manifest: JSON lines; `config.manifest`, or what another source was written to. The file may be removed once the plan stands.
        root: what paths in it are relative to; its folder unless given.
        tokenizers: view -> `name/version`, part of the fingerprint.

    Raises:
        UserError: a bad line, no rows, two rows with one key.
    """

    def __init__(self, manifest: str | Path, config: FarmConfig, tokenizers: Mapping[str, str], *, root: Path | None = None) -> None:
        self.root = root or Path(manifest).absolute().parent
        columns = scan_manifest(manifest, seed=config.seed, root=self.root)
        if not len(columns):
            raise UserError("the manifest has no rows", seen=config.manifest, remedy="make one: uniaudio corpus manifest DIR --out m.jsonl")
        self.rows = len(columns)
        self._per_unit = config.clips_per_unit
        self._offsets, self._lengths, self._digests = columns.offsets, columns.lengths, columns.digests
        self._handle = os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)
        if twice := first_duplicate(columns.keys):
            first, second = (clip_key(self._row(row)) for row in twice)
            raise UserError("two manifest rows have one key", seen=f"{first}, {second}", remedy="give every row an id of its own")
        splits = hold_out(columns, fraction=config.held_out_fraction)
        # Rows of a split in the manifest's order; 4 bytes a row up to 4 billion rows.
        self._order = {split: np.flatnonzero(splits == number).astype(np.uint32) for number, split in enumerate(SPLITS)}
        self._counts = [-(-len(self._order[split]) // self._per_unit) for split in SPLITS]
        self._settings = json.dumps(_settings(config, tokenizers), sort_keys=True, ensure_ascii=False).encode()

    def __len__(self) -> int:
        return sum(self._counts)

    def __iter__(self) -> Iterator[WorkUnit]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, unit: int) -> WorkUnit:
        if not 0 <= unit < len(self):
            raise IndexError(unit)
        split, number = self.place(unit)
        lines = tuple(self._line(int(row)) for row in self._rows(unit))
        return WorkUnit(split, number, self.fingerprint(unit), str(self.root), lines)

    def place(self, unit: int) -> tuple[str, int]:
        """Split and number of a unit."""
        return (SPLITS[0], unit) if unit < self._counts[0] else (SPLITS[1], unit - self._counts[0])

    def find(self, split: str, number: int) -> int | None:
        """The unit that makes this shard; None where there is none."""
        begin = 0 if split == SPLITS[0] else self._counts[0]
        return begin + number if number < self._counts[SPLITS.index(split)] else None

    def name(self, unit: int) -> str:
        return shard_name(*self.place(unit))

    def size(self, unit: int) -> int:
        """Rows of a unit."""
        return len(self._rows(unit))

    def fingerprint(self, unit: int) -> str:
        digest = hashlib.sha256(self._settings)
        digest.update(self._digests[self._rows(unit)].astype("<u8").tobytes())
        return digest.hexdigest()[:16]

    def close(self) -> None:
        """Closes the manifest."""
        os.close(self._handle)

    def _rows(self, unit: int) -> np.ndarray:
        split, number = self.place(unit)
        return self._order[split][number * self._per_unit : (number + 1) * self._per_unit]

    def _line(self, row: int) -> bytes:
        return os.pread(self._handle, int(self._lengths[row]), int(self._offsets[row]))

    def _row(self, row: int) -> ManifestRow:
        return parse_row("", self._line(row), self.root)


def _settings(config: FarmConfig, tokenizers: Mapping[str, str]) -> dict[str, object]:
    """What decides a shard's bytes beside its rows."""
    return {"schema": SCHEMA_VERSION, "filters": config.filters.model_dump(), "tokenizers": dict(tokenizers), "seed": config.seed}


def relative_to(path: str, folder: Path) -> str:
    """`path` relative to `folder` where it lies below it, else as it is."""
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path
