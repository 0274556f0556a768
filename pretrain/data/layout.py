"""Where everything stands in the documents of a block: special tokens and pieces of views, for thousands of documents at once.

The numbers are those of `sequence.SequenceBuilder`, which does one document; reading the pieces is the assembler's. From the index alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uniaudio.configs.tasks import SegmentConfig, TaskConfig
from uniaudio.pretrain.data.clips import ClipTable
from uniaudio.pretrain.data.documents import Documents, Layout, starts_of
from uniaudio.pretrain.data.sequence import LossOn, Part, make_parts
from uniaudio.pretrain.data.tasks import FRAME_RATE, GLOBAL_FRAMES, SEGMENT_FRAMES, segment_frames
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.tokenize_farm.schema import VIEWS, base_view


@dataclass(frozen=True)
class _Source:
    """Where a segment of some documents comes from: clips (D,), first row and rows of the view there, content frames."""

    clip: np.ndarray
    first: np.ndarray | int
    rows: np.ndarray
    frames: np.ndarray


class Typesetter:
    """Lays out documents. `parts`: the segments of all tasks, task after task; a piece names its own by its number there."""

    def __init__(
        self,
        clips: ClipTable,
        tasks: Sequence[TaskConfig],
        vocabulary: Vocabulary,
        num_codebooks: int,
        *,
        prompt_seconds: float,
        loss_on: LossOn,
        prefix_lm: bool,
    ) -> None:
        self.clips, self.tasks, self.loss_on, self.prefix_lm = clips, tasks, loss_on, prefix_lm
        self.vocabulary = vocabulary
        self._prompt_frames = max(1, round(prompt_seconds * FRAME_RATE))
        self._parts_of = [make_parts(task, vocabulary, num_codebooks) for task in tasks]
        self.parts: list[Part] = [part for parts in self._parts_of for part in parts]
        self._first_part = starts_of(np.array([len(parts) for parts in self._parts_of])).tolist()
        self._start, self._end = vocabulary.special("<start>"), vocabulary.special("<end>")

    def lay_out(self, documents: Documents) -> Layout:
        """The layout of all documents, in their order."""
        specials: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # document, at, token
        pieces: list[dict[str, np.ndarray]] = []
        counted = np.zeros((len(documents), 2), np.int32)
        prefix = np.zeros(len(documents), np.int32)
        for task in np.unique(documents.task).tolist():
            places = np.flatnonzero(documents.task == task)
            chosen = documents.take(places)
            at = np.full(len(places), 2, np.int64)
            token = self.vocabulary.special(self.tasks[task].token)
            specials += [_column(places, at - 2, self._start), _column(places, at - 1, token)]
            for number, part in enumerate(self._parts_of[task], start=self._first_part[task]):
                source = self._source(self.tasks[task], part.segment, chosen)
                specials += [_column(places, at, part.start), _column(places, at + 1 + source.frames, part.stop)]
                pieces.append(self._pieces(places, at + 1, number, source))
                at = at + source.frames + SEGMENT_FRAMES
            specials.append(_column(places, at, self._end))
            if not np.array_equal(at + 1, chosen.frames):
                raise ValueError(f"task {self.tasks[task].name}: documents laid out in other lengths than planned")
            first = at - 1 - source.frames  # the target's first code: the last segment is the target
            whole = np.asarray(source.first) + chosen.target >= self._rows_of_target(self.tasks[task], chosen)
            counted[places, 0] = 0 if self.loss_on == "all" else first
            counted[places, 1] = np.where(whole, at + 1, at - 1)
            prefix[places] = first if self.prefix_lm else 0
        return _gather(len(documents), specials, pieces, counted, prefix)

    def _rows_of_target(self, task: TaskConfig, documents: Documents) -> np.ndarray:
        """Rows from which on the target counts as whole, so that its end is learned; a middle always is."""
        if task.target.draw == "middle":
            return np.zeros(len(documents), np.int64)
        return self.clips.of_view("rows", task.target.view, documents.clip)

    def _source(self, task: TaskConfig, segment: SegmentConfig, documents: Documents) -> _Source:
        clip, target = documents.clip, documents.target
        if segment.draw == "same_speaker":
            rows = np.minimum(self.clips.of_view("rows", segment.view, documents.prompt), self._prompt_frames)
            return _Source(documents.prompt, documents.crop, rows, rows)
        if segment is task.target:
            return _Source(clip, documents.start, target, target)
        if segment.draw == "before":
            return _Source(clip, 0, documents.start, documents.start)
        if segment.draw == "after":
            rest = documents.frames - (GLOBAL_FRAMES + SEGMENT_FRAMES * len(task.segments)) - documents.start - target
            return _Source(clip, documents.start + target, rest, rest)
        rows = self.clips.of_view("rows", segment.view, clip)
        frames = segment_frames(segment, rows, target)
        return _Source(clip, 0, rows if segment.durations == "keep" else frames, frames)

    def _pieces(self, places: np.ndarray, at: np.ndarray, number: int, source: _Source) -> dict[str, np.ndarray]:
        view = self.parts[number].segment.view
        columns = self.clips.of_view("columns", view, source.clip)
        row_bytes = columns * np.dtype(VIEWS[base_view(view)][0]).itemsize
        return {
            "document": places,
            "at": at.astype(np.int32),
            "count": source.frames.astype(np.int32),
            "part": np.full(len(places), number, np.int16),
            "shard": self.clips.shard_of(source.clip).astype(np.int32),
            "offset": self.clips.of_view("offsets", view, source.clip) + source.first * row_bytes,
            "rows": source.rows.astype(np.int32),
            "columns": columns.astype(np.int32),
        }


def _column(places: np.ndarray, at: np.ndarray, token: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return places, at, np.full(len(places), token, np.int32)


def _gather(
    count: int,
    specials: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    pieces: Sequence[dict[str, np.ndarray]],
    counted: np.ndarray,
    prefix: np.ndarray,
) -> Layout:
    """The columns of all tasks sorted by document; those of one document stay in their order."""
    owner, at, token = (np.concatenate(column) for column in zip(*specials))
    order = np.argsort(owner, kind="stable")
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    of_piece = np.argsort(columns["document"], kind="stable")
    piece_starts = starts_of(np.bincount(columns.pop("document"), minlength=count))
    return Layout(
        {"at": at[order].astype(np.int32), "token": token[order]},
        starts_of(np.bincount(owner, minlength=count)),
        {name: column[of_piece] for name, column in columns.items()},
        piece_starts,
        counted,
        prefix,
    )
