"""Work units: a pure function of the manifest's rows, the seed and the config; the same rows make the same units everywhere.

Owns the split into train and valid, the cutting into units, the keys of clips and the fingerprint of a unit. Reads no audio.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow, make_id
from uniaudio.tokenize_farm.schema import SCHEMA_VERSION, SPLITS, shard_name, valid_key


@dataclass(frozen=True)
class WorkUnit:
    """The rows of one shard. `fingerprint`: 16 hex digits over all that decides the shard's bytes, except the recordings themselves."""

    split: str
    number: int
    rows: tuple[ManifestRow, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        return shard_name(self.split, self.number)


def clip_key(row: ManifestRow) -> str:
    """The clip's key in its shard: the row's id where that is a valid key, else a readable one with a hash."""
    return row.id if valid_key(row.id) else make_id(row.id)


def assign_splits(rows: Sequence[ManifestRow], *, held_out_fraction: float, seed: int) -> list[str]:
    """Split of each row, in order.

    A row's own `split` wins. The others go by the hash of their speaker (without one: of their recording), so that a speaker or a
    recording never lies in both. Where a kind of audio would be left without a held-out clip, its smallest group that holds
    `held_out_fraction` of it is held out.

    Raises:
        UserError: a row with another split than train or valid.
    """
    for row in rows:
        if row.split is not None and row.split not in SPLITS:
            raise UserError(f"manifest row {row.id}: unknown split", seen=row.split, allowed=", ".join(SPLITS))
    groups = [("speaker", row.speaker) if row.speaker else ("recording", row.audio_filepath) for row in rows]
    splits = [row.split or ("valid" if _fraction(group, seed) < held_out_fraction else "train") for row, group in zip(rows, groups)]
    if held_out_fraction > 0:
        for kind in sorted({row.kind for row in rows}):
            _hold_out_one(rows, groups, splits, kind, held_out_fraction)
    return splits


def _fraction(group: tuple[str, str], seed: int) -> float:
    """A number in [0, 1) from the name of the speaker or the recording: the same on every machine with the same manifest."""
    name = Path(group[1]).name if group[0] == "recording" else group[1]
    digest = hashlib.sha256(f"{seed}\0{group[0]}\0{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _hold_out_one(rows: Sequence[ManifestRow], groups: list[tuple[str, str]], splits: list[str], kind: str, fraction: float) -> None:
    mine = [i for i, row in enumerate(rows) if row.kind == kind]
    free = Counter(groups[i] for i in mine if rows[i].split is None)
    if any(splits[i] == "valid" for i in mine) or len(free) < 2:
        return
    enough = [group for group in free if free[group] >= fraction * len(mine)] or list(free)
    chosen = min(enough, key=lambda group: (free[group], group))
    for i, row in enumerate(rows):  # of every kind: a speaker who also sings is held out with the songs
        if groups[i] == chosen and row.split is None:
            splits[i] = "valid"


def plan_units(rows: Iterable[ManifestRow], config: FarmConfig, tokenizers: Mapping[str, str]) -> list[WorkUnit]:
    """All units, train first, rows in the manifest's order.

    Args:
        tokenizers: view -> `name/version`, part of the fingerprint.

    Raises:
        UserError: no rows, two rows with one key, a bad split.
    """
    rows = list(rows)
    if not rows:
        raise UserError(
            "the manifest has no rows", seen=config.manifest, remedy="make one: uniaudio corpus manifest DIR --out manifest.jsonl"
        )
    keys = Counter(clip_key(row) for row in rows)
    if (twice := keys.most_common(1)[0])[1] > 1:
        raise UserError("two manifest rows have one key", seen=twice[0], remedy="give every row an id of its own")
    splits = assign_splits(rows, held_out_fraction=config.held_out_fraction, seed=config.seed)
    folder = Path(config.manifest).absolute().parent
    settings = {"schema": SCHEMA_VERSION, "filters": config.filters.model_dump(), "tokenizers": dict(tokenizers), "seed": config.seed}
    units = []
    for split in SPLITS:
        chosen = [row for row, its in zip(rows, splits) if its == split]
        for number, begin in enumerate(range(0, len(chosen), config.clips_per_unit)):
            part = tuple(chosen[begin : begin + config.clips_per_unit])
            units.append(WorkUnit(split, number, part, _fingerprint(part, settings, folder)))
    return units


def _fingerprint(rows: Sequence[ManifestRow], settings: Mapping[str, object], folder: Path) -> str:
    """Paths below the manifest's folder count relative to it, so that a moved corpus is the same corpus."""
    described = [row.model_dump() | {"audio_filepath": relative_to(row.audio_filepath, folder)} for row in rows]
    text = json.dumps([settings, described], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def relative_to(path: str, folder: Path) -> str:
    """`path` relative to `folder` where it lies below it, else as it is."""
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path
