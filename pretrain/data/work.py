"""What a call of the assembler works on: where every document and every piece of it stands in its row, for all rows at once.

R rows, D documents, P pieces.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from uniaudio.pretrain.data.documents import Documents, Layout, Rows, starts_of


@dataclass(frozen=True)
class Work:
    """Rows laid out. Frames are counted in the row.

    row, start: (D,) row of each document, and its first frame there. spans: of each document first frame and last + 1, and those of what
    the loss counts. first: R + 1, first document of each row. filled: R, frames that documents take. owner, at: (P,) document of each
    piece, and its first frame. special_at, special_token ((n, 1)): special tokens, those of row r from special_bounds[r] on.
    What a row, by its number, is made of beside audio that is read straight to its place: runs: (document, first number, ids of all
    levels). texts: (document, first frame, states). audio: (piece, first frame, codes). lost: documents that a bad shard takes away.
    """

    documents: Documents
    layout: Layout
    row: np.ndarray
    start: np.ndarray
    spans: list[tuple[int, int, int, int]]
    first: list[int]
    filled: list[int]
    owner: np.ndarray
    at: np.ndarray
    special_at: np.ndarray
    special_token: np.ndarray
    special_bounds: list[int]
    runs: defaultdict[int, list[tuple[int, int, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))
    texts: defaultdict[int, list[tuple[int, int, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))
    audio: defaultdict[int, list[tuple[int, int, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))
    lost: set[int] = field(default_factory=set)


def measure(rows: Rows) -> Work:
    """Where everything stands in rows that are laid out."""
    if (layout := rows.layout) is None:
        raise ValueError("rows of a planner without a layout")
    documents, count = rows.documents, len(rows)
    row = np.repeat(np.arange(count), np.diff(rows.starts))
    ends = starts_of(documents.frames)
    before = ends[rows.starts]  # frames of the rows before each
    start = ends[:-1] - before[row]
    owner = np.repeat(np.arange(len(documents)), np.diff(layout.piece_starts))
    special_owner = np.repeat(np.arange(len(documents)), np.diff(layout.special_starts))
    spans = np.column_stack([start, start + documents.frames, layout.counted + start[:, None]])
    return Work(
        documents,
        layout,
        row,
        start,
        spans.tolist(),
        rows.starts.tolist(),
        np.diff(before).tolist(),
        owner,
        start[owner] + layout.pieces["at"],
        start[special_owner] + layout.specials["at"],
        layout.specials["token"].astype(np.int64)[:, None],
        layout.special_starts[rows.starts].tolist(),
    )


@dataclass(frozen=True)
class Straight:
    """Audio pieces that are read straight to their places, those of row r from bounds[r] on: shard, byte of the tar, and first byte and
    last + 1 in a row of `levels` levels of two bytes."""

    levels: int
    pieces: np.ndarray
    bounds: list[int]
    shards: list[int]
    offsets: list[int]
    starts: list[int]
    stops: list[int]

    @classmethod
    def of(cls, work: Work, pieces: np.ndarray, levels: int) -> "Straight":
        """The chosen pieces, ascending."""
        columns = work.layout.pieces
        starts = work.at[pieces] * (2 * levels)
        stops = starts + columns["count"][pieces].astype(np.int64) * (2 * levels)
        bounds = np.searchsorted(work.row[work.owner[pieces]], np.arange(len(work.filled) + 1))
        lists = (column.tolist() for column in (bounds, columns["shard"][pieces], columns["offset"][pieces], starts, stops))
        return cls(levels, pieces, *lists)

    def of_row(self, row: int) -> tuple[np.ndarray, tuple[list[int], list[int], list[int], list[int]]]:
        """Numbers of the pieces of a row, and their columns as `ShardFiles.read_pieces` wants them."""
        inside = slice(self.bounds[row], self.bounds[row + 1])
        return self.pieces[inside], (self.shards[inside], self.offsets[inside], self.starts[inside], self.stops[inside])
