"""Rows of a plan -> the tensors of micro-batches: reads each piece of each document to its place, and numbers the codes of a row at once.

Owns padding (as `batch.py` documents it). What it makes is a pure function of the rows asked for, equal tensor by tensor to what
`sequence.SequenceBuilder` makes of one document after another; which rows those are is the loader's business. What stands where is worked
out for all rows of a call at once, memory is written row by row: of a row, everything stays in the processor's cache.

R rows of T frames, D documents, P pieces in a call.
"""

from collections.abc import Sequence

import numpy as np
import torch

from uniaudio.configs.data import DataConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.data.batch import HIDDEN, Batch
from uniaudio.pretrain.data.clips import ClipTable
from uniaudio.pretrain.data.documents import Documents, Rows
from uniaudio.pretrain.data.hide import hidden_history, hidden_span
from uniaudio.pretrain.data.ids import check_codes, held_codes, spread
from uniaudio.pretrain.data.layout import Typesetter
from uniaudio.pretrain.data.memory import BatchMemory, Slot
from uniaudio.pretrain.data.reading import ShardFault, ShardFiles
from uniaudio.pretrain.data.sequence import Part, check_range
from uniaudio.pretrain.data.work import Straight, Work, measure

_BYTES = 2  # of a code in a shard, and of a number of a text state


class BatchAssembler:
    """Makes batches of rows. Shapes are fixed by the config: T frames_per_row, D max_documents_per_row, S max_text_states_per_row.

    Raises (on assembly):
        UserError: naming the document whose codes cannot be used.
        ShardFault: a bad shard, where data.bad_shards is `stop`; where it is `skip`, its documents become padding.
    """

    def __init__(self, clips: ClipTable, data: DataConfig, model: ModelConfig, typesetter: Typesetter, files: ShardFiles) -> None:
        self.clips, self.data, self.model, self.typesetter = clips, data, model, typesetter
        self.tasks, self.parts = typesetter.tasks, typesetter.parts
        self.files = files
        self.memory = BatchMemory(data, model)
        vocabulary = typesetter.vocabulary
        special = (vocabulary.special(name) for name in ("<pad>", "<continuous_token>"))
        self._pad, self._continuous, self._hidden = *special, vocabulary.audio_mask
        levels = [vocabulary.audio_level(level).start for level in range(model.num_codebooks)]
        small = np.uint16 if vocabulary.size < 2**16 else np.uint32
        self._offsets = np.tile(np.array(levels, small), (data.frames_per_row, 1))
        self._ids = np.empty_like(self._offsets)
        self._raw = np.zeros(0, np.uint16)
        self._scratch = np.zeros(0, np.uint16)
        self._counting = np.arange(data.frames_per_row, dtype=np.int32)
        self._entries = len(vocabulary.audio_level(0))
        forms = (("audio",), ("audio", "masked"), ("states",), ("held",), ("first", "vector"))
        self._is_straight, self._is_audio, self._is_states, self._is_held, self._is_first = (
            np.array([part.form in those for part in self.parts]) for those in forms
        )
        self._id_offsets = np.array([int(part.offsets[0]) for part in self.parts])
        self._id_entries = np.array([part.entries for part in self.parts])

    def fill(self, rows: Rows, slots: Sequence[Slot]) -> list[int]:
        """Fills slots with micro-batches of the rows given, rows_per_micro_batch each; returns how many documents of each were lost."""
        B = self.data.rows_per_micro_batch
        sheets = [_Sheet(slot) for slot in slots]
        work = measure(rows)
        straight = self._read_views(work)
        for row in range(len(rows)):
            self._fill_row(work, straight, row, sheets[row // B], row % B)
        self._fill_bounds(work, sheets)
        return np.bincount(work.row[list(work.lost)] // B, minlength=len(slots)).tolist()  # type: ignore[no-any-return]

    def batch(self, rows: Rows) -> Batch:
        """One micro-batch of the rows given."""
        (slot,) = self.memory.take(1)
        self.fill(rows, [slot])
        return self.memory.batch(slot)

    def key(self, documents: Documents, place: int) -> str:
        """`tts/train-000003/KEY`: the document's name in logs."""
        return f"{self.tasks[int(documents.task[place])].name}/{self.clips.key(int(documents.clip[place]))}"

    def _read_views(self, work: Work) -> Straight:
        """Reads what is not simply audio, and makes the runs of ids and states of it; what is, is left to be read straight to its place."""
        pieces = work.layout.pieces
        part, columns = pieces["part"], pieces["columns"]
        levels = int(columns.max(initial=self.model.num_codebooks, where=self._is_audio[part]))
        if len(self._raw) < (size := self.data.frames_per_row * levels):
            self._raw = np.zeros(size, np.uint16)
        straight = self._is_straight[part] & (columns == levels)
        chosen, others = np.flatnonzero(straight), np.flatnonzero(~straight)
        taken = np.where(self._is_states[part], pieces["count"], pieces["rows"])[others]
        numbers = taken.astype(np.int64) * columns[others]
        ends = np.cumsum(numbers)
        starts = ends - numbers
        if len(self._scratch) < (size := int(numbers.sum())):
            self._scratch = np.zeros(size, np.uint16)
        target = (starts * _BYTES).tolist(), (ends * _BYTES).tolist(), self._scratch.data.cast("B")
        faults = self.files.read_pieces(pieces["shard"][others].tolist(), pieces["offset"][others].tolist(), *target)
        self._lose(work, others, faults)
        if work.lost:
            kept = np.flatnonzero(~np.isin(work.owner[others], list(work.lost)))
            others, starts = others[kept], starts[kept]
        self._make_ids(work, others, starts, self._is_held)
        self._make_ids(work, others, starts, self._is_first)
        self._note_views(work, others, starts)
        return Straight.of(work, chosen, levels)

    def _lose(self, work: Work, pieces: np.ndarray, faults: dict[int, ShardFault]) -> None:
        if faults and self.data.bad_shards == "stop":
            raise next(iter(faults.values()))  # of a shard found bad, the first names what is wrong
        work.lost.update(int(work.owner[pieces[number]]) for number in faults)

    def _make_ids(self, work: Work, others: np.ndarray, starts: np.ndarray, forms: np.ndarray) -> None:
        """Runs of pieces that are neither audio nor text states: phones held over their frames, or the first column of their views."""
        columns, Q = work.layout.pieces, self.model.num_codebooks
        of = np.flatnonzero(forms[columns["part"][others]])
        if len(of) == 0:
            return
        pieces, starts = others[of], starts[of]
        parts, counts = columns["part"][pieces], columns["count"][pieces].astype(np.int64)

        def name(number: int) -> str:
            return self.key(work.documents, int(work.owner[pieces[number]]))

        if forms is self._is_held:
            raw = held_codes(self._scratch, starts, columns["rows"][pieces].astype(np.int64), counts, name)
        else:
            raw = self._scratch[spread(starts, counts, columns["columns"][pieces].astype(np.int64))]
        check_codes(raw, counts, [self.parts[number] for number in parts.tolist()], self._id_entries[parts], name)
        ids = np.repeat(raw + np.repeat(self._id_offsets[parts], counts), Q)
        stops, firsts, owners = np.cumsum(counts) * Q, work.at[pieces] * Q, work.owner[pieces]
        for owner, row, first, start, stop in zip(*(c.tolist() for c in (owners, work.row[owners], firsts, stops - counts * Q, stops))):
            work.runs[row].append((owner, first, ids[start:stop]))

    def _note_views(self, work: Work, others: np.ndarray, starts: np.ndarray) -> None:
        """Text states, and audio that is masked or of fewer levels, for their rows."""
        columns = work.layout.pieces
        for place in np.flatnonzero((self._is_states | self._is_audio)[columns["part"][others]]).tolist():
            piece, start = int(others[place]), int(starts[place])
            owner, part = int(work.owner[piece]), self.parts[columns["part"][piece]]
            count, rows, width = (int(columns[name][piece]) for name in ("count", "rows", "columns"))
            if part.form == "states":
                states = self._scratch[start : start + count * width].view(np.float16).reshape(count, width)
                work.texts[work.row[owner]].append((owner, int(work.at[piece]), states))
            else:
                view = self._scratch[start : start + rows * width].reshape(rows, width)
                work.audio[work.row[owner]].append((piece, int(work.at[piece]), view))

    def _fill_row(self, work: Work, straight: Straight, row: int, sheet: "_Sheet", b: int) -> None:
        """Everything of a row that is as long as the row."""
        T, Q, filled = self.data.frames_per_row, self.model.num_codebooks, work.filled[row]
        raw = self._raw[: T * straight.levels].reshape(T, -1)
        pieces, columns = straight.of_row(row)
        if faults := self.files.read_pieces(*columns, raw.data.cast("B")):
            self._lose(work, pieces, faults)
        hidden = self._copy_audio(work, row, raw)
        codes, flat = sheet.codes[b], sheet.codes[b].reshape(-1)
        self._number(work, row, raw, codes)
        low, high = work.special_bounds[row], work.special_bounds[row + 1]
        codes[work.special_at[low:high]] = work.special_token[low:high]
        for _, first, ids in work.runs[row]:
            flat[first : first + len(ids)] = ids
        for start, stop in hidden:
            codes[start:stop] = self._hidden
        self._write_states(work, row, sheet, b)
        codes[filled:] = self._pad
        positions, mask = sheet.positions[b], sheet.mask[b].reshape(-1)
        positions[filled:] = self._counting[: T - filled]
        mask[:] = 0
        for document in range(work.first[row], work.first[row + 1]):
            start, stop, first, last = work.spans[document]
            positions[start:stop] = self._counting[: stop - start]
            if document in work.lost:
                codes[start:stop] = self._pad
                raw[start:stop] = 0  # whatever was read of it
            else:
                mask[first * Q : last * Q] = 1
                if share := self.data.hide_history:
                    history = hidden_history(share, last - first, work.documents.draw[document])
                    sheet.mask[b, first:last][history] = HIDDEN

    def _copy_audio(self, work: Work, row: int, raw: np.ndarray) -> list[tuple[int, int]]:
        """Copies audio of fewer levels than others', and masked audio, to its place; returns the spans to hide."""
        hidden = []
        for piece, first, view in work.audio[row]:
            owner, part, count = int(work.owner[piece]), self.parts[work.layout.pieces["part"][piece]], work.layout.pieces["count"][piece]
            if part.form == "masked":
                try:
                    start, stop = self._hidden_span(part, work.documents, owner)
                except ShardFault as fault:
                    self._lose(work, np.array([piece]), {0: fault})
                    continue
                hidden.append((first + start, first + stop))
            raw[first : first + count, : view.shape[1]] = view
        return hidden

    def _hidden_span(self, part: Part, documents: Documents, owner: int) -> tuple[int, int]:
        segment, clip = part.segment, documents.clip[owner : owner + 1]
        phones = None
        if segment.mask_words_of:
            offset, rows = (int(self.clips.of_view(name, segment.mask_words_of, clip)[0]) for name in ("offsets", "rows"))
            phones = np.empty((rows, 2), np.uint16)
            self.files.read_into(int(self.clips.shard_of(clip)[0]), offset, phones.data.cast("B"))
        return hidden_span(segment, int(documents.target[owner]), documents.draw[owner], phones)

    def _number(self, work: Work, row: int, raw: np.ndarray, codes: np.ndarray) -> None:
        """Raw codes to ids. What is not audio is left over from another row, inside its codebook, and will be written over."""
        ids = self._ids
        for level in range(ids.shape[1]):  # column by column, then whole: three times as fast as one broadcast sum of strided columns
            ids[:, level] = raw[:, level]
        if raw.max() >= self._entries:  # over all levels: a pass over contiguous memory
            raw[:] = 0  # nothing of it is to be left over
            self._name_the_stray(work, row, ids)
        np.add(ids, self._offsets, out=ids)
        codes[:] = ids

    def _name_the_stray(self, work: Work, row: int, raw: np.ndarray) -> None:
        """Raises UserError for the first of the raw codes (T, Q) that is outside its codebook: of the levels that the model has, and of a
        document that is not lost."""
        for frame in np.flatnonzero((raw >= self._entries).any(axis=1)).tolist():
            piece = int(np.flatnonzero((work.row[work.owner] == row) & (work.at <= frame))[-1])
            if (owner := int(work.owner[piece])) not in work.lost:
                check_range(raw[frame], self.parts[work.layout.pieces["part"][piece]], lambda: self.key(work.documents, owner))

    def _write_states(self, work: Work, row: int, sheet: "_Sheet", b: int) -> None:
        """The text states of a row, one after another, and where they stand."""
        sheet.places[b] = -1
        texts = [text for text in work.texts[row] if text[0] not in work.lost]
        states, end = sheet.slot.clear_states(b, sum(len(view) for _, _, view in texts)), 0
        for _, first, view in texts:
            begin, end = end, end + len(view)
            torch.from_numpy(states[begin:end]).copy_(torch.from_numpy(view))  # torch's conversion is several times numpy's
            sheet.places[b, begin:end] = self._counting[first : first + len(view)]
            sheet.codes[b, first : first + len(view)] = self._continuous

    def _fill_bounds(self, work: Work, sheets: Sequence["_Sheet"]) -> None:
        """Where documents begin, their prefixes and tasks."""
        shape = len(work.filled), self.data.max_documents_per_row
        kept = np.ones(len(work.documents), bool)
        kept[list(work.lost)] = False
        starts, prefixes, tasks = np.full(shape, self.data.frames_per_row), np.zeros(shape, np.int32), np.full(shape, -1)
        place = np.arange(len(work.documents)) - np.array(work.first)[work.row]  # inside the row
        starts[work.row, place] = work.start
        prefixes[work.row, place] = np.where(kept, work.layout.prefix, 0)
        tasks[work.row, place] = np.where(kept, work.documents.task, -1)
        for row, filled in enumerate(work.filled):
            if filled < self.data.frames_per_row:
                starts[row, work.first[row + 1] - work.first[row]] = filled
        B = self.data.rows_per_micro_batch
        for number, sheet in enumerate(sheets):
            for name, column in (("document_starts_BD", starts), ("prefix_lengths_BD", prefixes), ("task_ids_BD", tasks)):
                sheet.slot.array(name)[:] = column[number * B : (number + 1) * B]

    def close(self) -> None:
        """Closes the shards."""
        self.files.close()


class _Sheet:
    """A slot and the arrays that are written row by row."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        names = ("codes_BTQ", "target_mask_BTQ", "positions_BT", "text_positions_BS")
        self.codes, self.mask, self.positions, self.places = map(slot.array, names)
