"""Step number -> the micro-batches of this rank: what the trainer calls.

The rows of all epochs, one after another, are one endless sequence that depends on shards, config and seed alone. A step takes the next
rows_per_micro_batch x gradient_accumulation x data_parallel_size of them; rank r's micro-batch m is a fixed slice of those. So neither
workers, nor restarts, nor (with the position carried over) another data-parallel size change which documents come in which order.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from uniaudio.configs.data import DataConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.clips import load_clips
from uniaudio.pretrain.data.dataset import BatchAssembler, Row
from uniaudio.pretrain.data.plan import Planner
from uniaudio.pretrain.data.transfer import PackedBatches, pack, unpack
from uniaudio.pretrain.data.vocabulary import Vocabulary

logger = get_logger(__name__)


@dataclass(frozen=True)
class DataPosition:
    """Where the sequence of rows stands: step `step` begins with row `row`. A checkpoint keeps it; a layout with another number of rows a
    step continues from it without leaving out or repeating a document."""

    step: int = 0
    row: int = 0


class Loader:
    """Batches of one data-parallel rank. Made by `make_loader`."""

    def __init__(
        self,
        planner: Planner,
        assembler: BatchAssembler,
        *,
        data_parallel_rank: int,
        data_parallel_size: int,
        gradient_accumulation: int,
        position: DataPosition,
        workers: int,
    ) -> None:
        self.planner, self.assembler, self.position, self.workers = planner, assembler, position, workers
        self.rank, self.ranks, self.accumulation = data_parallel_rank, data_parallel_size, gradient_accumulation
        self.micro_rows = planner.data.rows_per_micro_batch
        self._prefetched: Iterator[PackedBatches | UserError] | None = None
        self._next_step = -1

    @property
    def rows_per_step(self) -> int:
        """R: rows of one step over all ranks."""
        return self.micro_rows * self.accumulation * self.ranks

    @property
    def fingerprint(self) -> str:
        """What a data position belongs to (`Planner.fingerprint`): under another one, row N is another row."""
        return self.planner.fingerprint

    def first_row(self, step: int) -> int:
        """Number in the endless sequence of the first row of `step`."""
        if step < self.position.step:
            raise UserError("a step before the loader's position", seen=step, allowed=f"from {self.position.step}")
        return self.position.row + (step - self.position.step) * self.rows_per_step

    def step_batches(self, step: int) -> list[Batch]:
        """The micro-batches of this rank for `step` (counted from 0), in the order of accumulation: a pure function of the step.

        Steps asked for in order are prefetched by `data.workers` processes; any other order costs the prefetched ones.
        """
        if self.workers == 0:
            return self.make_step(step)
        if self._prefetched is None or step != self._next_step:
            self._prefetched = self._prefetch(step)
        self._next_step = step + 1
        packed = next(self._prefetched)
        if isinstance(packed, UserError):
            raise packed
        return unpack(packed, self.assembler.no_states)

    def make_step(self, step: int) -> list[Batch]:
        """`step_batches` without prefetching."""
        first = self.first_row(step)
        slices = [first + (micro * self.ranks + self.rank) * self.micro_rows for micro in range(self.accumulation)]
        return [self.assembler.batch([self.planner.locate(start + row) for row in range(self.micro_rows)]) for start in slices]

    def _prefetch(self, step: int) -> Iterator[PackedBatches | UserError]:
        self.planner.locate(self.first_row(step))  # before the fork, so that every worker has the plan
        return iter(
            DataLoader(
                _Steps(self),
                batch_size=None,
                sampler=itertools.count(step),  # type: ignore[arg-type]
                num_workers=self.workers,
                multiprocessing_context="fork",
                prefetch_factor=2,
            )
        )

    def valid_batches(self, count: int) -> list[Batch]:
        """This rank's part of the first `count` micro-batches of the split, in fixed order; fewer where the split is smaller.

        Micro-batch i goes to rank i mod data_parallel_size; every rank gets the same number, filled up with batches of padding. So all
        ranks together see the same rows under any layout.
        """
        plan = self.planner.plan(0)
        total = min(count, math.ceil(plan.num_rows / self.micro_rows))
        turns = math.ceil(total / self.ranks)
        return [self._valid_batch(turn * self.ranks + self.rank, total) for turn in range(turns)]

    def _valid_batch(self, number: int, total: int) -> Batch:
        plan = self.planner.plan(0)
        rows = range(number * self.micro_rows, (number + 1) * self.micro_rows)
        chosen: list[Row | None] = [(plan, row) if number < total and row < plan.num_rows else None for row in rows]
        return self.assembler.batch(chosen)

    def info(self, step: int) -> dict[str, object]:
        """What `step` reads over all ranks: epoch of its first row, rows, and the keys of its documents in order.

        `next_row` with step + 1 is the DataPosition of a checkpoint taken after this step.
        """
        first = self.first_row(step)
        located = [self.planner.locate(row) for row in range(first, first + self.rows_per_step)]
        spans = [(plan, range(int(plan.row_starts[row]), int(plan.row_starts[row + 1]))) for plan, row in located]
        return {
            "epoch": located[0][0].epoch,
            "first_row": first,
            "next_row": first + self.rows_per_step,
            "keys": [self.assembler.key(plan, place) for plan, places in spans for place in places],
        }

    def close(self) -> None:
        """Stops the workers and closes the shards."""
        self._prefetched = None
        self.assembler.close()


class _Steps(Dataset[PackedBatches | UserError]):
    """Steps by number. A UserError is handed over as a value, so that it stays one line; anything else is raised by torch."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getitem__(self, step: int) -> PackedBatches | UserError:
        try:
            return pack(self.loader.make_step(step), self.loader.assembler.no_states)
        except UserError as error:
            return error


def make_loader(
    data: DataConfig,
    model: ModelConfig,
    vocabulary: Vocabulary,
    *,
    split: str = "train",
    data_parallel_rank: int = 0,
    data_parallel_size: int = 1,
    gradient_accumulation: int = 1,
    position: DataPosition | None = None,
) -> Loader:
    """Opens `data.shards` and plans the first epoch.

    Args:
        position: where to continue, from the checkpoint (`info(step)["next_row"]`); the beginning unless given.

    Raises:
        UserError: no shards, damaged ones, tasks that no clip serves, shapes that the model does not take.
    """
    clips = load_clips(data.shards, split)
    planner = Planner(clips, data, model)
    assembler = BatchAssembler(clips, planner.tasks, data, model, vocabulary)
    plan = planner.plan(0)
    for task, reasons in planner.lacking.items():
        if reasons:
            logger.info("split %s, task %s: clips left out: %s", split, task, reasons)
    logger.info(
        "split %s: %d clips, %d documents in %d rows of %d frames, %.1f %% filled%s",
        split,
        len(clips),
        len(plan.documents),
        plan.num_rows,
        data.frames_per_row,
        100 * plan.fill_rate(data.frames_per_row),
        "".join(f"; {count} left out ({reason})" for reason, count in plan.left_out.items() if count),
    )
    return Loader(
        planner,
        assembler,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
        gradient_accumulation=gradient_accumulation,
        position=position or DataPosition(),
        workers=data.workers if split == "train" else 0,
    )
