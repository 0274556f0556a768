"""Reads a manifest of any size once, into columns of numbers: what planning needs of a row, and where its line lies.

38 bytes a row (30 million rows: 1.1 GB), whatever the row holds; every line is checked as `manifest.read_manifest` checks it. A large file
is read by several processes at once, each a range of its bytes; the columns do not depend on how many.
"""

import hashlib
import multiprocessing
import os
import threading
from array import array
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import is_plain, make_id, parse_line, parse_row
from uniaudio.tokenize_farm.schema import KINDS, SPLITS, valid_key

_PARALLEL_BYTES = 64 * 2**20  # a smaller file is read sooner than processes start
_TYPES = {"offsets": "Q", "lengths": "I", "digests": "Q", "keys": "Q", "groups": "Q", "kinds": "B", "splits": "B"}


@dataclass
class RowColumns:
    """One entry a row, in the manifest's order.

    offsets (N,) uint64 and lengths (N,) uint32: the bytes of the row's line. digests (N,) uint64: of what the line says. keys (N,) uint64:
    hash of the clip's key. groups (N,) uint64: hash of the speaker, or of the recording where there is none; its upper 56 bits divided by
    2^56 are the number in [0, 1) that decides the split. kinds (N,) uint8: place in KINDS. splits (N,) uint8: 0 none given, else place in
    SPLITS + 1.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    digests: np.ndarray
    keys: np.ndarray
    groups: np.ndarray
    kinds: np.ndarray
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)


def scan_manifest(path: str | Path, *, seed: int, root: Path | None = None, processes: int | None = None) -> RowColumns:
    """The columns of every row; `seed` goes into `groups`. Paths are relative to `root` (the manifest's folder).

    Raises:
        UserError: an unreadable file, or the first bad line (file, line number, key, remedy).
    """
    path = Path(path)
    root = root or path.absolute().parent
    try:
        size = path.stat().st_size
        if size < _PARALLEL_BYTES:
            return _as_columns([_scan_range(path, 0, size, seed, root)])
        processes = processes or len(os.sched_getaffinity(0))
        bounds = [size * i // (4 * processes) for i in range(4 * processes + 1)]
        ranges = len(bounds) - 1
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_driver) as pool:
            parts = pool.map(_scan_range, [path] * ranges, bounds[:-1], bounds[1:], [seed] * ranges, [root] * ranges)
            return _as_columns(list(parts))
    except OSError as error:
        raise UserError(
            f"the manifest {path} cannot be read",
            seen=error.strerror,
            remedy="check the path, or make one: uniaudio corpus manifest DIR --out manifest.jsonl",
        ) from error


def _end_with_driver() -> None:
    """In a worker: a driver that is killed takes it along, and the fork server, which lives as long as a worker does."""
    driver = multiprocessing.parent_process()
    assert driver is not None

    def wait() -> None:
        driver.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _as_columns(parts: list[dict[str, bytes]]) -> RowColumns:
    """Joins column by column and lets each part go, so that nothing is held twice but one column."""
    columns = {}
    for field in fields(RowColumns):
        pieces = [np.frombuffer(part.pop(field.name), dtype=_TYPES[field.name]) for part in parts]
        columns[field.name] = np.concatenate(pieces)
    return RowColumns(**columns)


def _scan_range(path: Path, begin: int, end: int, seed: int, root: Path) -> dict[str, bytes]:
    """Columns (as bytes) of the lines that begin in [begin, end)."""
    columns = {name: array(kind) for name, kind in _TYPES.items()}
    prefix = f'"{root}/'.encode()
    with path.open("rb") as handle:
        handle.seek(max(0, begin - 1))
        if begin:
            handle.readline()  # the rest of a line that begins before
        position, number = handle.tell(), 0
        while position < end and (line := handle.readline()):
            number += 1
            if not line.isspace():
                try:
                    data = _checked(line, root)
                    group, kind, split, key = _describe(data, seed)
                except UserError:
                    _raise_with_place(path, position, line, root)
                columns["offsets"].append(position)
                columns["lengths"].append(len(line))
                # A path below the manifest's folder counts relative to it, so that a moved corpus is the same corpus.
                columns["digests"].append(_number(line.strip().replace(prefix, b'"')))
                columns["keys"].append(_number(key.encode()))
                columns["groups"].append(group)
                columns["kinds"].append(kind)
                columns["splits"].append(split)
            position += len(line)
    return {name: column.tobytes() for name, column in columns.items()}


def _checked(line: bytes, folder: Path) -> dict[str, Any]:
    data = parse_line("", line)
    return data if is_plain(data) else parse_row("", line, folder).model_dump()


def _describe(data: dict[str, Any], seed: int) -> tuple[int, int, int, str]:
    name, speaker, split = data["audio_filepath"], data.get("speaker"), data.get("split")
    if split is not None and split not in SPLITS:
        raise UserError("unknown split")
    group = _group(seed, "speaker", speaker) if speaker else _group(seed, "recording", Path(name).name)
    row_id = data.get("id") or make_id(name, data.get("offset") or 0)
    key = row_id if valid_key(row_id) else make_id(row_id)
    return group, KINDS.index(data.get("kind", "speech")), SPLITS.index(split) + 1 if split else 0, key


def _raise_with_place(path: Path, position: int, line: bytes, folder: Path) -> None:
    """Raises the fault of the line at byte `position`, with its number: lines before it are counted only now."""
    with path.open("rb") as handle:
        number, left = 1, position
        while left:
            block = handle.read(min(left, 1 << 20))
            number += block.count(b"\n")
            left -= len(block)
    row = parse_row(f"{path}:{number}", line, folder)
    raise UserError(f"{path}:{number}: key split: unknown split", seen=row.split, allowed=", ".join(SPLITS))


@lru_cache(maxsize=1 << 16)
def _group(seed: int, kind: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{kind}\0{name}".encode()).digest()[:8], "big")


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def hold_out(columns: RowColumns, *, fraction: float) -> np.ndarray:
    """(N,) uint8, place in SPLITS of each row.

    A row's own split wins. The others go by the hash of their group, so that a speaker or a recording never lies in both. Where a kind of
    audio would be left without a held-out clip, its smallest group that holds `fraction` of it is held out; where it would be held out
    whole (one speaker, by chance), its largest group is trained on.
    """
    chance = (columns.groups >> np.uint64(8)).astype(np.float64) / 2**56
    free = columns.splits == 0
    splits = np.where(free, chance < fraction, columns.splits == SPLITS.index("valid") + 1).astype(np.uint8)
    if fraction > 0:
        for kind in range(len(KINDS)):
            _hold_out_one(columns, free, splits, kind, fraction)
            _train_on_one(columns, free, splits, kind)
    return splits


def _hold_out_one(columns: RowColumns, free: np.ndarray, splits: np.ndarray, kind: int, fraction: float) -> None:
    mine = columns.kinds == kind
    if (splits[mine] == SPLITS.index("valid")).any():
        return
    groups, counts = np.unique(columns.groups[mine & free], return_counts=True)
    if len(groups) < 2:
        return
    enough = counts >= fraction * mine.sum()
    if not enough.any():
        enough[:] = True
    chosen = groups[enough][np.argmin(counts[enough])]
    splits[free & (columns.groups == chosen)] = SPLITS.index("valid")  # of every kind: a speaker who also sings is held out with the songs


def _train_on_one(columns: RowColumns, free: np.ndarray, splits: np.ndarray, kind: int) -> None:
    mine = columns.kinds == kind
    groups, counts = np.unique(columns.groups[mine & free], return_counts=True)
    if len(groups) and (splits[mine] == SPLITS.index("valid")).all():
        splits[free & (columns.groups == groups[np.argmax(counts)])] = SPLITS.index("train")


def first_duplicate(hashes: np.ndarray) -> Sequence[int]:
    """Places of two equal entries, or nothing. One sort: no step that grows with the square of the rows."""
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    return [] if len(equal) == 0 else sorted((int(order[equal[0]]), int(order[equal[0] + 1])))
