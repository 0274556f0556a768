"""Which documents are in an epoch, in what order, packed into which rows: a pure function of (shards, config, seed, epoch, block).

Shards are dealt to blocks anew every epoch, and blocks are read one after another; a block's documents are shuffled and packed among
themselves, from the index alone. So any block can be planned without the others: to go on in the middle of an epoch costs one block,
however long the epoch. Knows nothing of ranks, workers or steps.

A place in the endless sequence of rows is an integer, the address: epoch x 2^44 + block x 2^24 + row of the block.
"""

import hashlib
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np

from uniaudio.configs.data import DataConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.tasks import load_tasks
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.data.clips import ClipTable
from uniaudio.pretrain.data.documents import Documents, Layout, Rows, concatenate, join
from uniaudio.pretrain.data.draw import below, hashed, salt, shuffled
from uniaudio.pretrain.data.mix import Service
from uniaudio.pretrain.data.neighbours import Neighbours
from uniaudio.pretrain.data.packing import best_fit
from uniaudio.pretrain.data.tasks import FRAME_RATE, document_frames, fit_target, split_view, text_states

logger = get_logger(__name__)
_KEPT_BLOCKS = 4
_ROW_BITS, _BLOCK_BITS = 24, 20


def address(epoch: int, block: int, row: int) -> int:
    """A place in the endless sequence as one integer."""
    return ((epoch << _BLOCK_BITS) + block << _ROW_BITS) + row


def place(at: int) -> tuple[int, int, int]:
    """(epoch, block, row) of an address."""
    rest, row = divmod(at, 1 << _ROW_BITS)
    return (*divmod(rest, 1 << _BLOCK_BITS), row)


class Planner:
    """Plans blocks of rows, and walks from one to the next.

    Phases are those of `data.mix` (0 before its first change): each has an endless sequence of its own.

    Args:
        data: `tasks`, shape of a row, mix, seed.
        model: `num_codebooks` and `text_width`, against which the shards are checked.
        lay_out: what stands where in each document, worked out for a whole block at once and kept beside its rows.
        announce: told the shards of a block when it begins to be planned, one block before it is read.

    Raises:
        UserError: a task of the train split that no clip serves, shards of too few levels or of another text width, unknown names in
            the mix.
    """

    def __init__(
        self,
        clips: ClipTable,
        data: DataConfig,
        model: ModelConfig,
        lay_out: Callable[[Documents], Layout] | None = None,
        announce: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        self.clips, self.data, self._lay_out, self._announce = clips, data, lay_out, announce
        self.tasks = load_tasks(data.tasks)
        self.prompt_frames = max(1, round(data.prompt_seconds * FRAME_RATE))
        self.service = Service(clips, self.tasks)
        self.service.check_shapes(model)
        if empty := self.service.check_tasks():
            logger.warning("split %s serves no document of: %s", clips.split, ", ".join(empty))
        phases = data.mix.phases if clips.split == "train" else data.mix.phases[:1]
        self.phase_steps = [step for step, _ in phases]
        self.repeats = [self.service.repeats(shares) for _, shares in phases]
        self.num_blocks = math.ceil(clips.num_shards / data.shards_per_block)
        self.left_out: Counter[str] = Counter()
        self._planned: OrderedDict[tuple[int, int, int], Future[Rows]] = OrderedDict()
        self._sizes: dict[tuple[int, int, int], int] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1)  # plans the next block while the trainer works; the workers of a loader never plan

    @cached_property
    def order(self) -> dict[str, str]:
        """What the order of documents depends on beside the config: only where it is equal does a checkpoint's address mean the same."""
        shards, tasks = hashlib.sha256(), hashlib.sha256()
        for table in self.clips.tables:
            shards.update(table.fingerprint.encode())
        for task in self.tasks:
            tasks.update(task.model_dump_json().encode())
        held = f"{self.clips.num_shards} shards of {len(self.clips)} clips"
        names = ", ".join(task.name for task in self.tasks)
        return {"shards": f"{held}, sha256 {shards.hexdigest()[:16]}", "tasks": f"{names}, sha256 {tasks.hexdigest()[:16]}"}

    def block(self, phase: int, epoch: int, block: int) -> Rows:
        """The rows of a block; the last few are kept."""
        return self._ask(phase, epoch, block).result()

    def _ask(self, phase: int, epoch: int, block: int) -> "Future[Rows]":
        key = (phase, epoch, block)
        with self._lock:
            if key not in self._planned:
                while len(self._planned) >= _KEPT_BLOCKS:
                    self._planned.popitem(last=False)
                self._planned[key] = self._thread.submit(self._make, phase, epoch, block)
            self._planned.move_to_end(key)
            return self._planned[key]

    def size(self, phase: int, epoch: int, block: int) -> int:
        """Rows of a block."""
        key = (phase, epoch, block)
        if key not in self._sizes:
            self._sizes[key] = len(self.block(*key))
        return self._sizes[key]

    def _size_at(self, phase: int, at: int) -> int:
        """Rows of the block that an address lies in. UserError where it lies in none: that of other shards, or of another config."""
        epoch, block, row = place(at)
        size = self.size(phase, epoch, block) if block < self.num_blocks else 0
        if row and row >= size:
            raise UserError(
                "the data position of the checkpoint is no row of these shards under this config",
                seen=f"epoch {epoch}, block {block}, row {row}",
                allowed=f"{self.num_blocks} blocks, {size} rows in that one",
                remedy="go on with the shards and the data section that it was made with, or start from its weights (train.init_from)",
            )
        return size

    def rows(self, phase: int, at: int, count: int) -> tuple[Rows, int]:
        """The next `count` rows from an address on, and the address behind them. The block after them is planned meanwhile."""
        parts, first = [], at
        while count:
            epoch, block, row = place(at)
            size = self._size_at(phase, at)
            taken = min(count, size - row)
            if taken:
                parts.append(self.block(phase, epoch, block).take(row, row + taken))
            count -= taken
            at = at + taken if row + taken < size else self._next(phase, at, first)
        self._ask(phase, *place(self._next(phase, at, -1))[:2])
        return join(parts), at

    def first_rows(self, count: int) -> Rows:
        """The first `count` rows of epoch 0, or all of it where it has fewer."""
        parts: list[Rows] = []
        for block in range(self.num_blocks):
            if (left := count - sum(map(len, parts))) <= 0:
                break
            parts.append(self.block(0, 0, block).take(0, min(left, self.size(0, 0, block))))
        return join(parts)

    def average_repeats(self, phase: int) -> dict[str, float]:
        """How often the clips of each task, and of each dataset, come in an epoch of the phase, on average over their hours."""
        hours, repeats = self.service.hours, self.repeats[phase]
        by_task = (repeats * hours).sum(axis=1) / np.maximum(hours.sum(axis=1), 1e-300)
        averages = dict(zip((f"task/{task.name}" for task in self.tasks), by_task.tolist()))
        if len(self.clips.names) > 1:
            by_dataset = (repeats * hours).sum(axis=0) / np.maximum(hours.sum(axis=0), 1e-300)
            averages |= dict(zip((f"dataset/{name}" for name in self.clips.names), by_dataset.tolist()))
        return averages

    def skip(self, phase: int, at: int, count: int) -> int:
        """The address `count` rows behind another."""
        first = at
        while count:
            row = place(at)[2]
            size = self._size_at(phase, at)
            taken = min(count, size - row)
            count -= taken
            at = at + taken if row + taken < size else self._next(phase, at, first)
        return at

    def _next(self, phase: int, at: int, first: int) -> int:
        """The address of the next block's beginning. UserError where a whole epoch from `first` on has not one row."""
        epoch, block, _ = place(at)
        behind = address(epoch, block + 1, 0) if block + 1 < self.num_blocks else address(epoch + 1, 0, 0)
        if (
            first >= 0
            and place(behind)[0] > place(first)[0] + 1
            and not any(self._sizes.get((phase, epoch, number), 0) for number in range(self.num_blocks))
        ):
            raise UserError("no document fits data.frames_per_row", seen=dict(self.left_out), remedy="longer rows, or data.too_long=cut")
        return behind

    def _make(self, phase: int, epoch: int, block: int) -> Rows:
        seed = self.data.seed + (phase << 32)
        order = shuffled(self.clips.num_shards, seed, epoch, salt("shards"))
        shards = order[block * self.data.shards_per_block : (block + 1) * self.data.shards_per_block]
        if self._announce:
            self._announce(shards)
        clips = self.clips.clips_of_shards(shards)
        neighbours = Neighbours(self.clips, clips)
        left_out: Counter[str] = Counter()
        parts = [self._documents(number, phase, epoch, neighbours, left_out) for number in range(len(self.tasks))]
        documents = concatenate(parts)
        for reason, count in left_out.items():
            if count and not self.left_out[reason]:
                logger.warning("split %s, documents left out: %s (%d in the first block that has some)", self.clips.split, reason, count)
        self.left_out.update(left_out)
        return self._pack(documents.take(np.argsort(hashed(documents.draw, 1), kind="stable")), seed, epoch, block)

    def _documents(self, number: int, phase: int, epoch: int, neighbours: Neighbours, left_out: Counter[str]) -> Documents:
        """The documents of one task in a block, before shuffling and packing."""
        task, seed = self.tasks[number], self.data.seed + (phase << 32)
        eligible, dataset = neighbours.eligible(number, self.service)
        repeat = self.repeats[phase][number][dataset]
        # copies up to epoch e are floor(u + e * repeat) with u fixed for each clip: over epochs every clip gets its share
        begin = (hashed(seed, salt(task.name), eligible) >> np.uint64(40)).astype(np.float64) / 2**24
        copies = (np.floor(begin + (epoch + 1) * repeat) - np.floor(begin + epoch * repeat)).astype(np.int64)
        clip = np.repeat(eligible, copies)
        copy = np.arange(len(clip)) - np.repeat(np.cumsum(copies) - copies, copies)
        draw = hashed(seed, epoch, salt(task.name), clip, copy)
        nobody = np.full(len(clip), -1, np.int64)
        prompt = neighbours.draw(clip, hashed(draw, 2)) if task.needs_prompt else nobody
        prompt_rows = self.clips.of_view("rows", "audio", prompt) if task.needs_prompt else np.zeros(len(clip), np.int64)
        crop = below(hashed(draw, 3), np.maximum(prompt_rows - self.prompt_frames, 0) + 1)
        rows = {segment.key: self.clips.of_view("rows", segment.view, clip) for segment in task.segments if segment.key != "prompt"}
        if task.needs_prompt:
            rows["prompt"] = np.minimum(prompt_rows, self.prompt_frames)
        start, whole = np.zeros(len(clip), np.int64), rows[task.target.key]
        if task.is_split:
            start, pieces = split_view(task, whole, self.data.frames_per_row, draw)
            rows |= pieces
        target = fit_target(task, rows, self.data.frames_per_row)
        if self.data.too_long == "skip":
            uncut = (
                (start + rows[task.target.key] + rows.get(f"{task.target.view}.after", 0)) == whole if task.is_split else target == whole
            )
            target = np.where(uncut & (target == rows[task.target.key]), target, 0)
        states = text_states(task, rows, len(clip))
        fits, roomy = target > 0, states <= self.data.max_text_states_per_row
        left_out[f"{task.name}: longer than a row"] += int((~fits).sum())
        left_out[f"{task.name}: more text than a row takes"] += int((fits & ~roomy).sum())
        frames = document_frames(task, rows, target)
        documents = Documents(np.full(len(clip), number, np.int32), clip, prompt, crop, start, target, frames, states, draw)
        return documents.take(np.flatnonzero(fits & roomy))

    def _pack(self, documents: Documents, seed: int, epoch: int, block: int) -> Rows:
        """Packs a block's documents; the rows are shuffled."""
        if len(documents) == 0:
            return Rows(documents, np.zeros(1, np.int64))
        row_of = best_fit(
            documents.frames,
            documents.states,
            frames=self.data.frames_per_row,
            max_documents=self.data.max_documents_per_row - 1,  # the padding behind them takes one entry of the boundary tensor
            max_states=self.data.max_text_states_per_row,
        )
        count = int(row_of.max()) + 1
        rank = np.empty(count, np.int64)
        rank[shuffled(count, seed, epoch, salt("rows"), block)] = np.arange(count)
        row = rank[row_of]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row, minlength=count))])
        documents = documents.take(np.argsort(row, kind="stable"))
        return Rows(documents, starts, self._lay_out(documents) if self._lay_out else None)

    def close(self) -> None:
        """Ends the planning thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
