"""Rows of a plan -> the tensors of a micro-batch: reads every piece of every document to its place, then numbers all codes at once.

Owns padding (as `batch.py` documents it). What it makes is a pure function of the rows asked for, equal tensor by tensor to what
`sequence.SequenceBuilder` makes of one document after another; which rows those are is the loader's business.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from uniaudio.configs.data import DataConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.clips import ClipTable
from uniaudio.pretrain.data.documents import Documents, Layout, Rows
from uniaudio.pretrain.data.hide import hidden_span
from uniaudio.pretrain.data.layout import Typesetter
from uniaudio.pretrain.data.reading import ShardFault, ShardFiles
from uniaudio.pretrain.data.sequence import Part, check_range, hold
from uniaudio.pretrain.data.states import StatesPool
from uniaudio.tokenize_farm.schema import VIEWS, base_view


@dataclass
class _Canvas:
    """One micro-batch while it is filled. X = B x T frames; `raw` (X, L): codes of all levels as the shards have them, 0 elsewhere."""

    raw: np.ndarray
    codes: np.ndarray
    written: list[tuple[int, int, np.ndarray]]  # first frame, last + 1, ids: what is not plain audio
    states: np.ndarray | None
    state_positions: np.ndarray
    states_taken: list[int]  # of each row


class BatchAssembler:
    """Makes batches of rows. Shapes are fixed by the config: T frames_per_row, D max_documents_per_row, S max_text_states_per_row.

    Raises (on assembly):
        UserError: naming the document whose codes cannot be used.
        ShardFault: a bad shard, where data.bad_shards is `stop`; where it is `skip`, its documents become padding, counted in `skipped`.
    """

    def __init__(self, clips: ClipTable, data: DataConfig, model: ModelConfig, typesetter: Typesetter, files: ShardFiles) -> None:
        self.clips, self.data, self.model, self.typesetter = clips, data, model, typesetter
        self.tasks, self.parts = typesetter.tasks, typesetter.parts
        self.files = files
        self.skipped = 0
        self.pool = StatesPool(data.rows_per_micro_batch, data.max_text_states_per_row, model.text_width)
        vocabulary = typesetter.vocabulary
        self._pad, self._continuous, self._hidden = (
            vocabulary.special("<pad>"),
            vocabulary.special("<continuous_token>"),
            vocabulary.audio_mask,
        )
        levels = [vocabulary.audio_level(level).start for level in range(model.num_codebooks)]
        frames = data.rows_per_micro_batch * data.frames_per_row
        self._offsets = np.tile(np.array(levels, np.uint16 if vocabulary.size < 2**16 else np.uint32), (frames, 1))
        self._entries = len(vocabulary.audio_level(0))
        self._types = [np.dtype(VIEWS[base_view(part.segment.view)][0]) for part in self.parts]

    def batch(self, rows: Rows) -> Batch:
        """One micro-batch of the rows given: rows_per_micro_batch of them."""
        B, T, Q = self.data.rows_per_micro_batch, self.data.frames_per_row, self.model.num_codebooks
        D, S = self.data.max_documents_per_row, self.data.max_text_states_per_row
        layout, documents = _laid_out(rows), rows.documents
        counts = np.diff(rows.starts)
        row_of = np.repeat(np.arange(B), counts)
        ends = np.cumsum(documents.frames) if len(documents) else np.zeros(0, np.int64)
        filled = np.diff(np.concatenate([np.zeros(1, np.int64), ends])[rows.starts])  # frames of each row
        starts = ends - documents.frames - np.repeat(np.cumsum(filled) - filled, counts)  # inside the row
        begins = starts + row_of * T
        levels = int(layout.pieces["columns"].max(initial=Q, where=self._is_audio[layout.pieces["part"]]))
        canvas = _Canvas(np.zeros((B * T, levels), np.uint16), np.empty((B * T, Q), np.int64), [], None, np.full((B, S), -1, np.int32), [])
        lost = self._read_pieces(layout, documents, begins, row_of, canvas)
        self._number(canvas, layout, begins, documents)
        for row, end in enumerate(filled.tolist()):
            canvas.codes[row * T + end : (row + 1) * T] = self._pad

        mask = np.zeros(B * T + 1, np.int8)
        kept = np.ones(len(documents), bool)
        kept[list(lost)] = False
        mask[(begins + layout.counted[:, 0])[kept]] += 1
        mask[(begins + layout.counted[:, 1])[kept]] -= 1
        mask_BTQ = np.empty((B * T, Q), np.int8)
        np.cumsum(mask[:-1], out=mask_BTQ[:, 0], dtype=np.int8)
        for level in range(1, Q):
            mask_BTQ[:, level] = mask_BTQ[:, 0]

        place = np.arange(len(documents)) - np.repeat(rows.starts[:-1], counts)  # inside the row
        starts_BD, prefix_BD, tasks_BD = np.full((B, D), T, np.int32), np.zeros((B, D), np.int32), np.full((B, D), -1, np.int32)
        starts_BD[row_of, place] = starts
        prefix_BD[row_of, place] = np.where(kept, layout.prefix, 0)
        tasks_BD[row_of, place] = np.where(kept, documents.task, -1)
        short = np.flatnonzero(filled < T)
        starts_BD[short, counts[short]] = filled[short]
        self._erase(canvas, documents, begins, lost, T)

        opened = np.sort(np.concatenate([begins, short * T + filled[short]]))
        positions = np.arange(B * T, dtype=np.int32) - np.repeat(opened, np.diff(opened, append=B * T)).astype(np.int32)
        states = self.pool.none if canvas.states is None else torch.from_numpy(canvas.states)
        before = (canvas.codes.reshape(B, T, Q), mask_BTQ.reshape(B, T, Q), starts_BD, prefix_BD, positions.reshape(B, T))
        tensors = [*map(torch.from_numpy, before), states, *map(torch.from_numpy, (canvas.state_positions, tasks_BD))]
        return Batch(*tensors)

    @cached_property
    def _is_audio(self) -> np.ndarray:
        """(parts,) whether a part's codes have levels."""
        return np.array([part.form in ("audio", "masked") for part in self.parts])

    def key(self, documents: Documents, place: int) -> str:
        """`tts/train-000003/KEY`: the document's name in logs."""
        return f"{self.tasks[int(documents.task[place])].name}/{self.clips.key(int(documents.clip[place]))}"

    def _read_pieces(self, layout: Layout, documents: Documents, begins: np.ndarray, row_of: np.ndarray, canvas: _Canvas) -> set[int]:
        """Reads every piece to its place; returns the documents that a bad shard takes away."""
        raw = canvas.raw
        levels = raw.shape[1]
        bytes_of = raw.data.cast("B")
        frame_bytes = 2 * levels
        owners = np.repeat(np.arange(len(documents)), np.diff(layout.piece_starts))
        firsts = begins[owners] + layout.pieces["at"]
        columns = (layout.pieces[name].tolist() for name in ("count", "part", "shard", "offset", "rows", "columns"))
        read, parts, lost = self.files.read_into, self.parts, set()
        for owner, first, count, part, shard, offset, rows, width in zip(owners.tolist(), firsts.tolist(), *columns):
            form = parts[part].form
            try:
                if form == "audio" and width == levels:
                    read(shard, offset, bytes_of[first * frame_bytes : (first + count) * frame_bytes])
                    continue
                view = np.empty((rows, width), self._types[part])
                read(shard, offset, view.data.cast("B"))
                if form in ("audio", "masked"):
                    raw[first : first + count, :width] = view
                    if form == "masked":
                        start, stop = self._hidden_span(parts[part], documents, owner)
                        canvas.written.append((first + start, first + stop, np.array([self._hidden])))
                elif form == "states":
                    self._write_states(canvas, view, int(row_of[owner]), first, count)
                else:
                    ids = self._ids(parts[part], view, count, documents, owner)
                    canvas.written.append((first, first + count, ids))
            except ShardFault:
                if self.data.bad_shards == "stop":
                    raise
                lost.add(owner)
        self.skipped += len(lost)
        return lost

    def _ids(self, part: Part, view: np.ndarray, count: int, documents: Documents, owner: int) -> np.ndarray:
        """Ids (count,) of a piece that is neither audio nor text states."""
        codes = hold(view, count, lambda: self.key(documents, owner)) if part.form == "held" else view[:count, 0]
        check_range(codes, part, lambda: self.key(documents, owner))
        return codes + part.offsets

    def _write_states(self, canvas: _Canvas, view: np.ndarray, row: int, first: int, count: int) -> None:
        if canvas.states is None:
            canvas.states, canvas.states_taken = self.pool.take()
        taken = canvas.states_taken[row]
        target = torch.from_numpy(canvas.states[row, taken : taken + count])
        target.copy_(torch.from_numpy(view))  # torch's conversion from float16 is several times numpy's
        canvas.state_positions[row, taken : taken + count] = np.arange(first, first + count) % self.data.frames_per_row
        canvas.states_taken[row] += count
        canvas.written.append((first, first + count, np.array([self._continuous])))

    def _hidden_span(self, part: Part, documents: Documents, owner: int) -> tuple[int, int]:
        segment, clip = part.segment, documents.clip[owner : owner + 1]
        phones = None
        if segment.mask_words_of:
            offset, rows = (int(self.clips.of_view(name, segment.mask_words_of, clip)[0]) for name in ("offsets", "rows"))
            phones = np.empty((rows, 2), np.uint16)
            self.files.read_into(int(self.clips.shard_of(clip)[0]), offset, phones.data.cast("B"))
        return hidden_span(segment, int(documents.target[owner]), documents.draw[owner], phones)

    def _number(self, canvas: _Canvas, layout: Layout, begins: np.ndarray, documents: Documents) -> None:
        """Raw codes to ids, special tokens, and everything that is not audio."""
        if canvas.raw.max(initial=0) >= self._entries:  # over all levels: a pass over contiguous memory
            self._name_the_stray(canvas, layout, begins, documents)
        ids = np.empty_like(self._offsets)
        for level in range(ids.shape[1]):  # column by column, then whole: three times as fast as one broadcast sum of strided columns
            ids[:, level] = canvas.raw[:, level]
        np.add(ids, self._offsets, out=ids)
        canvas.codes[:] = ids
        owners = np.repeat(np.arange(len(documents)), np.diff(layout.special_starts))
        canvas.codes[begins[owners] + layout.specials["at"]] = layout.specials["token"][:, None]
        for first, stop, ids in canvas.written:
            canvas.codes[first:stop] = ids[:, None]

    def _name_the_stray(self, canvas: _Canvas, layout: Layout, begins: np.ndarray, documents: Documents) -> None:
        """Raises UserError for the first code outside its codebook, where it is of a level that the model has."""
        frames = np.flatnonzero((canvas.raw[:, : self._offsets.shape[1]] >= self._entries).any(axis=1))
        if len(frames) == 0:
            return
        frame = int(frames[0])
        owner = int(np.searchsorted(begins, frame, side="right")) - 1
        pieces = range(int(layout.piece_starts[owner]), int(layout.piece_starts[owner + 1]))
        piece = next(p for p in reversed(pieces) if begins[owner] + layout.pieces["at"][p] <= frame)
        check_range(
            canvas.raw[frame, : self._offsets.shape[1]], self.parts[layout.pieces["part"][piece]], lambda: self.key(documents, owner)
        )

    def _erase(self, canvas: _Canvas, documents: Documents, begins: np.ndarray, lost: set[int], frames_per_row: int) -> None:
        """Padding in the place of documents that a bad shard took away."""
        for owner in lost:
            start, stop = int(begins[owner]), int(begins[owner] + documents.frames[owner])
            canvas.codes[start:stop] = self._pad
            row, first = divmod(start, frames_per_row)
            inside = (canvas.state_positions[row] >= first) & (canvas.state_positions[row] < first + stop - start)
            canvas.state_positions[row, inside] = -1
            if canvas.states is not None:
                canvas.states[row, inside] = 0

    def close(self) -> None:
        """Closes the shards."""
        self.files.close()


def _laid_out(rows: Rows) -> Layout:
    if rows.layout is None:
        raise ValueError("rows of a planner without a layout")
    return rows.layout
