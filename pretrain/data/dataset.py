"""Rows of a plan -> the tensors of a micro-batch: reads the arrays, draws crops and masks, builds the documents side by side.

Owns reading and padding (as `batch.py` documents it). What it makes is a pure function of the rows asked for; which rows those are is the
loader's business.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from uniaudio.configs.data import DataConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.tasks import SegmentConfig, TaskConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.clips import ClipTable
from uniaudio.pretrain.data.draw import below, hashed
from uniaudio.pretrain.data.plan import EpochPlan
from uniaudio.pretrain.data.sequence import MASKED, SequenceBuilder
from uniaudio.pretrain.data.tasks import FRAME_RATE
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.tokenize_farm.schema import PHONE_MARKS, UNKNOWN_PHONE
from uniaudio.tokenize_farm.shard_reader import ShardReader

OPEN_SHARDS = 64
Row = tuple[EpochPlan, int]


class ClipReader:
    """Arrays of clips by number; keeps the last OPEN_SHARDS shards open, and hashes each the first time it is opened."""

    def __init__(self, clips: ClipTable, *, verify: bool) -> None:
        self.clips, self.verify = clips, verify
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._verified: set[int] = set()

    def view(self, clip: int, view: str) -> np.ndarray:
        """The raw array; UserError names a shard that is missing, cut short or changed."""
        return self._reader(int(self.clips.shard[clip])).view(int(self.clips.place[clip]), view)

    def _reader(self, shard: int) -> ShardReader:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        paths = self.clips.paths[shard]
        if self.verify and shard not in self._verified:
            check_shard(paths.tar, str(paths.read_sidecar().get("tar_sha256")))
            self._verified.add(shard)
        if len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        self._open[shard] = ShardReader(paths.tar, self.clips.indexes[shard])
        return self._open[shard]

    def close(self) -> None:
        """Closes every shard."""
        while self._open:
            self._open.popitem()[1].close()


def check_shard(tar: str | object, expected: str) -> None:
    """Raises UserError unless the file's sha256 is the sidecar's."""
    remedy = "run `uniaudio shards verify` on its folder; delete that shard's three files and run the farm again"
    try:
        with open(str(tar), "rb") as handle:
            seen = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError("cannot read a shard", seen=error, remedy=remedy) from error
    if seen != expected:
        raise UserError(
            f"shard {tar} is not what its sidecar says: a byte has changed", seen=f"sha256 {seen}", allowed=expected, remedy=remedy
        )


class BatchAssembler:
    """Makes batches of rows. Shapes are fixed by the config: T frames_per_row, D max_documents_per_row, S max_text_states_per_row.

    Raises (on assembly):
        UserError: naming the shard and clip whose data cannot be used.
    """

    def __init__(self, clips: ClipTable, tasks: Sequence[TaskConfig], data: DataConfig, model: ModelConfig, vocabulary: Vocabulary) -> None:
        self.clips, self.data, self.model = clips, data, model
        self.reader = ClipReader(clips, verify=data.verify)
        self.builders = [
            SequenceBuilder(task, vocabulary, model.num_codebooks, loss_on=data.loss_on, prefix_lm=model.prefix_lm) for task in tasks
        ]
        self._pad = vocabulary.special("<pad>")
        self._prompt_frames = max(1, round(data.prompt_seconds * FRAME_RATE))

    def batch(self, rows: Sequence[Row | None]) -> Batch:
        """One micro-batch of rows_per_micro_batch rows; None stands for a row of padding only."""
        B, T, Q = self.data.rows_per_micro_batch, self.data.frames_per_row, self.model.num_codebooks
        D, S = self.data.max_documents_per_row, self.data.max_text_states_per_row
        codes = np.empty((B, T, Q), np.int64)
        mask = np.zeros((B, T, Q), np.int8)
        starts = np.full((B, D), T, np.int32)
        prefixes = np.zeros((B, D), np.int32)
        positions = np.empty((B, T), np.int32)
        states: np.ndarray | None = None  # made with the first text: zeroing megabytes costs as much as building the documents
        state_positions = np.full((B, S), -1, np.int32)
        task_ids = np.full((B, D), -1, np.int32)
        for b, row in enumerate(rows):
            places = range(0)
            if row is not None:
                plan, number = row
                places = range(int(plan.row_starts[number]), int(plan.row_starts[number + 1]))
                documents = plan.documents
                task_ids[b, : len(places)] = documents.task[places.start : places.stop]
            end, taken = 0, 0
            for d, place in enumerate(places):
                start, end = end, end + int(documents.frames[place])
                starts[b, d] = start
                text, at, prefixes[b, d] = self._fill(plan, place, codes[b, start:end], mask[b, start:end])
                if len(at):
                    states = np.zeros((B, S, self.model.text_width), np.float32) if states is None else states
                    states[b, taken : taken + len(at)] = text
                    state_positions[b, taken : taken + len(at)] = at + start
                    taken += len(at)
            codes[b, end:] = self._pad
            if end < T:
                starts[b, len(places)] = end
            opened = starts[b, : len(places) + (end < T)]
            positions[b] = np.arange(T, dtype=np.int32) - np.repeat(opened, np.diff(opened, append=T))
        text_states = self.no_states if states is None else torch.from_numpy(states)
        before, after = (codes, mask, starts, prefixes, positions), (state_positions, task_ids)
        tensors = [*map(torch.from_numpy, before), text_states, *map(torch.from_numpy, after)]
        return Batch(*tensors)

    @cached_property
    def no_states(self) -> torch.Tensor:
        """(B, S, C) text states of every micro-batch without text: zeros, shared by all of them, so never to be written to."""
        return torch.zeros(self.data.rows_per_micro_batch, self.data.max_text_states_per_row, self.model.text_width)

    def key(self, plan: EpochPlan, place: int) -> str:
        """`tts/train-000003/KEY`: the document's name in logs."""
        return f"{self.builders[plan.documents.task[place]].task.name}/{self.clips.key(int(plan.documents.clip[place]))}"

    def _fill(self, plan: EpochPlan, place: int, codes: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        documents = plan.documents
        builder = self.builders[documents.task[place]]
        clip, draw = int(documents.clip[place]), documents.draw[place]
        views: dict[str, np.ndarray] = {}
        for segment in builder.task.segments:
            if segment.draw == "same_speaker":
                start = int(documents.crop[place])
                views[segment.key] = self.reader.view(int(documents.prompt[place]), "audio")[start : start + self._prompt_frames]
                continue
            view = self.reader.view(clip, segment.view)
            if segment.draw == "masked":
                phones = self.reader.view(clip, segment.mask_words_of) if segment.mask_words_of else None
                view = hide_span(view, segment, int(documents.target[place]), draw, phones)
            views[segment.key] = view
        return builder.fill(views, codes, mask, target_frames=int(documents.target[place]), clip=self.key(plan, place))

    def close(self) -> None:
        """Closes the shards."""
        self.reader.close()


def hide_span(
    view: np.ndarray, segment: SegmentConfig, frames: int, draw: np.ndarray | int, phones: np.ndarray | None = None
) -> np.ndarray:
    """A copy of the codes with one span hidden (MASKED) inside the first `frames`: length and place drawn from `draw`.

    With aligned `phones` (P, 2) the span is one of whole words, `segment.mask_words` of them; a word that `frames` cut in two is hidden up
    to there.
    """
    hidden = view.copy()
    start, stop = _word_span(phones, segment, frames, draw) if phones is not None else _span(segment, frames, draw)
    hidden[start:stop] = MASKED
    return hidden


def _span(segment: SegmentConfig, frames: int, draw: np.ndarray | int) -> tuple[int, int]:
    shortest, longest = (max(1, round(seconds * FRAME_RATE)) for seconds in segment.mask_seconds)
    length = min(frames, shortest + int(below(hashed(draw, 4), longest - shortest + 1)[0]))
    start = int(below(hashed(draw, 5), frames - length + 1)[0])
    return start, start + length


def _word_span(phones: np.ndarray, segment: SegmentConfig, frames: int, draw: np.ndarray | int) -> tuple[int, int]:
    """First and last frame + 1 of words one after another; a span of seconds where no word lies in the first `frames`."""
    spans = word_spans(phones)
    spans = spans[spans[:, 0] < frames]
    if len(spans) == 0:
        return _span(segment, frames, draw)
    fewest, most = segment.mask_words
    words = min(len(spans), fewest + int(below(hashed(draw, 4), most - fewest + 1)[0]))
    first = int(below(hashed(draw, 5), len(spans) - words + 1)[0])
    return int(spans[first, 0]), min(frames, int(spans[first + words - 1, 1]))


def word_spans(phones: np.ndarray) -> np.ndarray:
    """(W, 2) first frame and last + 1 of each word of aligned phones (P, 2): runs of sounds between marks; none without a frame."""
    ids, ends = phones[:, 0].astype(np.int64), np.cumsum(phones[:, 1], dtype=np.int64)
    sounds = (ids >= PHONE_MARKS) | (ids == UNKNOWN_PHONE)
    edges = np.flatnonzero(np.diff(sounds.astype(np.int8), prepend=0, append=0))
    first, last = edges[::2], edges[1::2] - 1
    spans = np.stack([ends[first] - phones[first, 1], ends[last]], axis=1)
    return spans[spans[:, 1] > spans[:, 0]]
