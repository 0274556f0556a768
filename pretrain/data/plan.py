"""Which documents are in an epoch, in what order, packed into which rows: a pure function of (shards, config, seed, epoch).

Reads no array data: lengths come from the indexes. Knows nothing of ranks, workers or steps. A document is a clip in the role of a task;
R rows, D documents, N clips.
"""

import bisect
import hashlib
import threading
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from uniaudio.configs.data import DataConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.tasks import CONTINUOUS, TaskConfig, load_tasks
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.data.clips import ClipTable
from uniaudio.pretrain.data.draw import below, hashed, salt, shuffled
from uniaudio.pretrain.data.packing import best_fit
from uniaudio.pretrain.data.tasks import FRAME_RATE, document_frames, fit_target, text_states
from uniaudio.tokenize_farm.schema import KINDS

logger = get_logger(__name__)
_COPY_UNIT = 2**20  # repeats of a task are multiples of 2^-20, so that their sums over epochs are exact in float64


@dataclass(frozen=True)
class Documents:
    """Columns over documents, each (D,).

    task: position in data.tasks. clip: number in the clip table. prompt: clip that the prompt is cut from, -1 without. crop: first
    frame of the prompt in that clip. target: target frames after cutting. frames: of the whole document. states: continuous text
    positions. draw: uint64, source of its further draws.
    """

    task: np.ndarray
    clip: np.ndarray
    prompt: np.ndarray
    crop: np.ndarray
    target: np.ndarray
    frames: np.ndarray
    states: np.ndarray
    draw: np.ndarray

    def __len__(self) -> int:
        return len(self.task)

    def take(self, places: np.ndarray) -> "Documents":
        """The documents at `places`, in that order."""
        return Documents(*(getattr(self, name)[places] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class EpochPlan:
    """One epoch: documents in reading order; row r holds documents row_starts[r]..row_starts[r + 1] - 1."""

    epoch: int
    documents: Documents
    row_starts: np.ndarray
    left_out: dict[str, int]

    @property
    def num_rows(self) -> int:
        return len(self.row_starts) - 1

    def fill_rate(self, frames_per_row: int) -> float:
        """Share of the rows' frames that hold documents."""
        return float(self.documents.frames.sum(dtype=np.int64)) / (self.num_rows * frames_per_row)


class Planner:
    """Makes the plan of any epoch, and finds a row of the endless sequence of epochs.

    Args:
        data: `tasks`, shape of a row, mix, seed.
        model: `num_codebooks` and `text_width`, against which the shards are checked.

    Raises:
        UserError: a task of the train split that no clip serves, shards of too few levels or of another text width.
    """

    def __init__(self, clips: ClipTable, data: DataConfig, model: ModelConfig) -> None:
        self.clips, self.data = clips, data
        self.tasks = load_tasks(data.tasks)
        self.prompt_frames = max(1, round(data.prompt_seconds * FRAME_RATE))
        self.lacking: dict[str, dict[str, int]] = {}
        voices = _voices(clips)
        self._has_company = (voices >= 0) & (np.bincount(voices + 1, minlength=1)[voices + 1] > 1)
        self._eligible = [self._clips_for(task) for task in self.tasks]
        self._check_shapes(model)
        self._check_tasks()
        self.repeats = self._repeats()
        self._plans: dict[int, EpochPlan] = {}
        self._rows_before = [0]
        self._lock = threading.RLock()  # a trainer reads ahead in a thread while it asks for the documents of the step before

    def _clips_for(self, task: TaskConfig) -> np.ndarray:
        """Numbers of the clips that serve `task`; counts why the others of its kinds do not."""
        of_kind = np.isin(self.clips.kinds, [KINDS.index(kind) for kind in task.kinds])
        eligible = of_kind.copy()
        reasons: dict[str, int] = {}
        for view in task.required_views:
            has = self.clips.rows_of(view) > 0
            reasons[f"no view {view}"] = int((eligible & ~has).sum())
            eligible &= has
        if task.needs_prompt:
            reasons["no other clip of the speaker"] = int((eligible & ~self._has_company).sum())
            eligible &= self._has_company
        self.lacking[task.name] = {reason: count for reason, count in reasons.items() if count}
        return np.flatnonzero(eligible)

    def _check_shapes(self, model: ModelConfig) -> None:
        for task, eligible in zip(self.tasks, self._eligible):
            for segment in task.segments:
                columns = self.clips.columns[segment.view][eligible] if len(eligible) else np.zeros(0)
                if segment.modality == CONTINUOUS and (columns != model.text_width).any():
                    raise UserError(
                        f"model.text_width is not the width of the shards' view {segment.view}",
                        seen=model.text_width,
                        allowed=int(columns[columns != model.text_width][0]),
                    )
                if segment.modality == "audio" and (columns < model.num_codebooks).any():
                    raise UserError(
                        f"model.num_codebooks exceeds the levels of the shards' view {segment.view}",
                        seen=model.num_codebooks,
                        allowed=f"up to {int(columns.min())}",
                    )

    def _check_tasks(self) -> None:
        empty = [task.name for task, eligible in zip(self.tasks, self._eligible) if len(eligible) == 0]
        if unknown := sorted(set(self.data.mix.weights) - {task.name for task in self.tasks}):
            raise UserError("data.mix.weights names tasks outside data.tasks", seen=", ".join(unknown), allowed=", ".join(self.data.tasks))
        if not empty:
            return
        why = "; ".join(f"{name}: {self.lacking[name] or 'no clip of its kind'}" for name in empty)
        if self.clips.split == "train" or len(empty) == len(self.tasks):
            raise UserError(
                f"no clip of the split {self.clips.split} serves these tasks of data.tasks: {why}",
                seen=f"{len(self.clips)} clips in {self.clips.directory}",
                remedy="leave those tasks out of data.tasks, or tokenize the views they need",
            )
        logger.warning("split %s serves no document of: %s", self.clips.split, why)

    def _repeats(self) -> list[float]:
        """How often each task's clips come in an epoch, on average: 1 at alpha 1 without weights, and on held-out clips."""
        frames = np.array(
            [self.clips.rows_of(task.target.view)[eligible].sum(dtype=np.int64) for task, eligible in zip(self.tasks, self._eligible)]
        )
        weights = self.data.mix.weights
        if (self.data.mix.alpha == 1 and not weights) or self.clips.split != "train":
            return [1.0] * len(self.tasks)
        powers = np.where(frames > 0, frames.astype(float) ** self.data.mix.alpha, 0.0)
        shares = powers / powers.sum()
        shares = np.array([weights.get(task.name, share) for task, share in zip(self.tasks, shares)]) * (frames > 0)
        if shares.sum() == 0:
            raise UserError("data.mix.weights leaves no task with a share above 0", seen=weights)
        repeats = shares / shares.sum() * frames.sum() / np.maximum(frames, 1)
        return [round(repeat * _COPY_UNIT) / _COPY_UNIT for repeat in repeats.tolist()]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that the order of documents depends on: only under an equal one does a checkpoint's row mean the same."""
        data = self.data.model_dump_json(exclude={"shards", "tasks", "workers", "verify", "rows_per_micro_batch", "loss_on"})
        digest = hashlib.sha256("\n".join([data, *(task.model_dump_json() for task in self.tasks)]).encode())
        for paths, index in zip(self.clips.paths, self.clips.indexes):
            digest.update(paths.name.encode())
            for column in (index.keys, index.speakers, index.kinds, index.views, index.shapes):
                digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of `epoch`; the last two are kept."""
        with self._lock:
            if epoch not in self._plans:
                while len(self._plans) > 1:
                    del self._plans[min(self._plans)]
                self._plans[epoch] = self._make(epoch)
            return self._plans[epoch]

    def locate(self, row: int) -> tuple[EpochPlan, int]:
        """The epoch that row `row` of the endless sequence lies in, and its number inside."""
        with self._lock:
            while self._rows_before[-1] <= row:
                self._rows_before.append(self._rows_before[-1] + self.plan(len(self._rows_before) - 1).num_rows)
            epoch = bisect.bisect_right(self._rows_before, row) - 1
            return self.plan(epoch), row - self._rows_before[epoch]

    def _make(self, epoch: int) -> EpochPlan:
        left_out: Counter[str] = Counter()
        block_of_shard = self._blocks(epoch)
        block_of_clip = block_of_shard[self.clips.shard]
        neighbours = _Neighbours(self.clips, block_of_clip)
        parts = [self._documents(index, epoch, neighbours, left_out) for index in range(len(self.tasks))]
        documents = Documents(*(np.concatenate([getattr(part, name) for part in parts]) for name in Documents.__dataclass_fields__))
        if len(documents) == 0:
            raise UserError("no document fits data.frames_per_row", seen=dict(left_out), remedy="longer rows, or data.too_long=cut")
        block = block_of_clip[documents.clip]
        order = np.lexsort((hashed(documents.draw, 1), block))
        documents, block = documents.take(order), block[order]
        bounds = np.flatnonzero(np.diff(block, prepend=-1, append=np.iinfo(block.dtype).max))
        places, sizes = [], []
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
            inside, rows = self._pack(documents.frames[start:stop], documents.states[start:stop], epoch, int(block[start]))
            places.append(inside + start)
            sizes.append(rows)
        row_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes))])
        return EpochPlan(epoch, documents.take(np.concatenate(places)), row_starts, dict(left_out))

    def _blocks(self, epoch: int) -> np.ndarray:
        """(shards,) block of each shard: blocks are read one after another, shards are dealt to them anew every epoch."""
        shards = len(self.clips.paths)
        block = np.empty(shards, np.int64)
        block[shuffled(shards, self.data.seed, epoch, salt("shards"))] = np.arange(shards) // self.data.shards_per_block
        return block

    def _documents(self, index: int, epoch: int, neighbours: "_Neighbours", left_out: Counter[str]) -> Documents:
        """The documents of one task in this epoch, before shuffling and packing."""
        task, eligible, repeat = self.tasks[index], self._eligible[index], self.repeats[index]
        # copies up to epoch e are floor(u + e * repeat) with u fixed for each clip: over epochs every clip gets its share
        phase = (hashed(self.data.seed, salt(task.name), eligible) >> np.uint64(40)).astype(np.float64) / 2**24
        copies = (np.floor(phase + (epoch + 1) * repeat) - np.floor(phase + epoch * repeat)).astype(np.int64)
        clip = np.repeat(eligible, copies)
        copy = np.arange(len(clip)) - np.repeat(np.cumsum(copies) - copies, copies)
        draw = hashed(self.data.seed, epoch, salt(task.name), clip, copy)
        prompt = neighbours.draw(clip, hashed(draw, 2)) if task.needs_prompt else np.full(len(clip), -1, np.int64)
        crop = below(hashed(draw, 3), np.maximum(rows_of_prompt(self.clips, prompt) - self.prompt_frames, 0) + 1)
        rows = self._rows(task, clip, prompt)
        target = fit_target(task, rows, self.data.frames_per_row)
        if self.data.too_long == "skip":
            target = np.where(target == rows[task.target.key], target, 0)
        states = text_states(task, rows, len(clip))
        fits = target > 0
        roomy = states <= self.data.max_text_states_per_row
        left_out[f"{task.name}: longer than a row"] += int((~fits).sum())
        left_out[f"{task.name}: more text than a row takes"] += int((fits & ~roomy).sum())
        frames = document_frames(task, rows, target)
        documents = Documents(np.full(len(clip), index, np.int32), clip, prompt, crop, target, frames, states, draw)
        return documents.take(np.flatnonzero(fits & roomy))

    def _rows(self, task: TaskConfig, clip: np.ndarray, prompt: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of each segment's view for each document, by segment key."""
        rows = {segment.key: self.clips.rows_of(segment.view)[clip].astype(np.int64) for segment in task.segments}
        if task.needs_prompt:
            rows["prompt"] = np.minimum(rows_of_prompt(self.clips, prompt), self.prompt_frames)
        return rows

    def _pack(self, frames: np.ndarray, states: np.ndarray, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Packs one block: (places of its documents in row order, documents of each row), rows shuffled."""
        row_of = best_fit(
            frames,
            states,
            frames=self.data.frames_per_row,
            max_documents=self.data.max_documents_per_row - 1,  # the padding behind them takes one entry of the boundary tensor
            max_states=self.data.max_text_states_per_row,
        )
        count = int(row_of.max()) + 1
        rank = np.empty(count, np.int64)
        rank[shuffled(count, self.data.seed, epoch, salt("rows"), block)] = np.arange(count)
        places = np.argsort(rank[row_of], kind="stable")
        return places, np.bincount(rank[row_of], minlength=count)


def rows_of_prompt(clips: ClipTable, prompt: np.ndarray) -> np.ndarray:
    """(D,) int64 frames of the clips that prompts are cut from; 0 where there is none."""
    return np.where(prompt >= 0, clips.rows_of("audio")[prompt], 0).astype(np.int64)


def _voices(clips: ClipTable) -> np.ndarray:
    """(N,) speaker and kind as one number, so that speech is prompted by speech and singing by singing; -1 without speaker or audio."""
    usable = (clips.speakers >= 0) & (clips.rows_of("audio") > 0)
    return np.where(usable, clips.speakers.astype(np.int64) * len(KINDS) + clips.kinds, -1)


class _Neighbours:
    """Draws another clip of the same speaker: from the same block where it holds one (read anyway), else from the whole split."""

    def __init__(self, clips: ClipTable, block_of_clip: np.ndarray) -> None:
        voices = _voices(clips)
        candidates = np.flatnonzero(voices >= 0)
        speaker, block = voices[candidates], block_of_clip[candidates]
        order = np.lexsort((block, speaker))
        self._order, speaker, block = candidates[order], speaker[order], block[order]
        self._place = np.full(len(clips), -1, np.int64)
        self._place[self._order] = np.arange(len(order))
        new_speaker = np.diff(speaker, prepend=-1) != 0
        self._wide = _groups(new_speaker)
        self._near = _groups(new_speaker | (np.diff(block, prepend=-1) != 0))

    def draw(self, clip: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """(D,) a clip of the same speaker, never the clip itself; every clip must have one."""
        place = self._place[clip]
        start, size = (np.where(self._near[1][place] > 1, near[place], wide[place]) for near, wide in zip(self._near, self._wide))
        return self._order[start + (place - start + 1 + below(hashes, size - 1)) % size]


def _groups(opens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(start, size) of the run that each place belongs to; `opens` is True where a run begins."""
    starts = np.flatnonzero(opens)
    sizes = np.diff(starts, append=len(opens))
    return np.repeat(starts, sizes), np.repeat(sizes, sizes)
