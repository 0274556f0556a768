"""The columns of documents: what the plan decides and the assembler reads. A document is a clip in the role of a task.

D documents, R rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Documents:
    """Columns over documents, each (D,).

    task: position in data.tasks. clip: number in the clip table. prompt: clip that the prompt is cut from, -1 without. crop: first
    frame of the prompt in that clip. start: first row of the target in its view (0 but for tasks that split a view). target: target frames
    after cutting. frames: of the whole document. states: continuous text positions. draw: uint64, source of its further draws.
    """

    task: np.ndarray
    clip: np.ndarray
    prompt: np.ndarray
    crop: np.ndarray
    start: np.ndarray
    target: np.ndarray
    frames: np.ndarray
    states: np.ndarray
    draw: np.ndarray

    def __len__(self) -> int:
        return len(self.task)

    def take(self, places: np.ndarray | slice) -> "Documents":
        """The documents at `places`, in that order."""
        return Documents(*(getattr(self, field.name)[places] for field in fields(self)))


def concatenate(parts: Sequence[Documents]) -> Documents:
    """The documents of all parts, one after another."""
    return Documents(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Documents)))


@dataclass(frozen=True)
class Layout:
    """What stands where in documents: special tokens, pieces of views, and what the loss counts. Positions are frames of the document.

    specials: columns at (int32), token (int32). pieces: columns at, count (int32, frames), part (int16, number of the segment among all
    tasks' segments), shard (int32), offset (int64, byte of the tar), rows, columns (int32, of the array to read there). Those of document d
    are special_starts[d]..special_starts[d + 1] - 1, and so on. counted: (D, 2) int32, first and last + 1 frame of the loss. prefix: (D,)
    int32, frames before the target's first code under prefix-LM, else 0.
    """

    specials: dict[str, np.ndarray]
    special_starts: np.ndarray
    pieces: dict[str, np.ndarray]
    piece_starts: np.ndarray
    counted: np.ndarray
    prefix: np.ndarray

    def take(self, first: int, stop: int) -> "Layout":
        """Documents first..stop - 1."""
        specials, pieces = self.special_starts[first : stop + 1], self.piece_starts[first : stop + 1]
        return Layout(
            {name: column[int(specials[0]) : int(specials[-1])] for name, column in self.specials.items()},
            specials - specials[0],
            {name: column[int(pieces[0]) : int(pieces[-1])] for name, column in self.pieces.items()},
            pieces - pieces[0],
            self.counted[first:stop],
            self.prefix[first:stop],
        )


def _join_layouts(parts: Sequence[Layout]) -> Layout:
    return Layout(
        {name: np.concatenate([part.specials[name] for part in parts]) for name in parts[0].specials},
        starts_of(np.concatenate([np.diff(part.special_starts) for part in parts])),
        {name: np.concatenate([part.pieces[name] for part in parts]) for name in parts[0].pieces},
        starts_of(np.concatenate([np.diff(part.piece_starts) for part in parts])),
        np.concatenate([part.counted for part in parts]),
        np.concatenate([part.prefix for part in parts]),
    )


def starts_of(counts: np.ndarray) -> np.ndarray:
    """(n + 1,) int64: where each of n runs begins, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


@dataclass(frozen=True)
class Rows:
    """Rows of documents: row r holds documents starts[r]..starts[r + 1] - 1, so a row may be empty. starts: (R + 1,) int64, from 0.
    layout: None where the planner was made without one."""

    documents: Documents
    starts: np.ndarray
    layout: Layout | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, first: int, stop: int) -> "Rows":
        """Rows first..stop - 1."""
        starts = self.starts[first : stop + 1]
        low, high = int(starts[0]), int(starts[-1])
        layout = self.layout.take(low, high) if self.layout else None
        return Rows(self.documents.take(slice(low, high)), starts - low, layout)

    def __reduce__(self) -> tuple[Callable[..., "Rows"], tuple[object, ...]]:
        """Pickled as one run of bytes, six times as fast as array by array: a loader process is sent rows for every step."""
        columns = _columns(self)
        names = (tuple(self.layout.specials), tuple(self.layout.pieces)) if self.layout else None
        kinds, sizes = "".join([column.dtype.char for column in columns]), [column.size for column in columns]
        return _rows_of_bytes, (names, kinds, sizes, b"".join([column.tobytes() for column in columns]))


def _columns(rows: Rows) -> list[np.ndarray]:
    columns = [getattr(rows.documents, field.name) for field in fields(Documents)] + [rows.starts]
    if (layout := rows.layout) is not None:
        columns += [*layout.specials.values(), layout.special_starts, *layout.pieces.values(), layout.piece_starts, layout.counted]
        columns.append(layout.prefix)
    return columns


def _rows_of_bytes(names: tuple[tuple[str, ...], tuple[str, ...]] | None, kinds: str, sizes: Sequence[int], data: bytes) -> Rows:
    """The inverse of `Rows.__reduce__`; its arrays are not to be written to."""
    columns, start = [], 0
    for kind, size in zip(kinds, sizes):
        columns.append(np.frombuffer(data, kind, size, start) if size else np.zeros(0, kind))
        start += columns[-1].nbytes
    count = len(fields(Documents))
    documents, rest = Documents(*columns[:count]), iter(columns[count:])
    starts = next(rest)
    if names is None:
        return Rows(documents, starts)
    specials, special_starts = {name: next(rest) for name in names[0]}, next(rest)
    pieces, piece_starts = {name: next(rest) for name in names[1]}, next(rest)
    return Rows(documents, starts, Layout(specials, special_starts, pieces, piece_starts, next(rest).reshape(-1, 2), next(rest)))


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of all parts, one after another; at least one part."""
    if len(parts) == 1:
        return parts[0]
    documents = concatenate([part.documents for part in parts])
    starts = starts_of(np.concatenate([np.diff(part.starts) for part in parts]))
    layouts = [part.layout for part in parts if part.layout is not None]
    return Rows(documents, starts, _join_layouts(layouts) if len(layouts) == len(parts) else None)


def pad_rows(rows: Rows, count: int) -> Rows:
    """`rows` filled up with empty ones to `count`."""
    return Rows(rows.documents, np.pad(rows.starts, (0, count - len(rows)), mode="edge"), rows.layout)
