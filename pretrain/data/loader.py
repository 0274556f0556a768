"""Step number -> the micro-batches of this rank: what the trainer calls.

The rows of all epochs, one after another, are one endless sequence that depends on shards, config and seed alone. A step takes the next
rows_per_micro_batch x gradient_accumulation x data_parallel_size of them; rank r's micro-batch m is a fixed slice of those. So neither
workers, nor restarts, nor (with the position carried over) another data-parallel size change which documents come in which order. Where
`data.mix` changes, after a given number of steps, another such sequence begins.

Planning is this process's, one block ahead in a thread; steps are made ahead (`ahead.py`), with `data.workers` by processes that are told
rows.
"""

import bisect
import threading
import zlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

from uniaudio.configs.data import DataConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.tasks import load_tasks
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.data.ahead import Alone, Workers, steps_together
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.clips import NoClips, load_clips
from uniaudio.pretrain.data.dataset import BatchAssembler
from uniaudio.pretrain.data.documents import Rows, pad_rows
from uniaudio.pretrain.data.layout import Typesetter
from uniaudio.pretrain.data.mix import Service
from uniaudio.pretrain.data.patterns import Arranger, make_arranger
from uniaudio.pretrain.data.plan import Planner, place
from uniaudio.pretrain.data.reading import ShardFiles
from uniaudio.pretrain.data.remote import Remote, has_split, is_remote
from uniaudio.pretrain.data.vocabulary import Vocabulary

logger = get_logger(__name__)
_KEPT_ADDRESSES = 1024


@dataclass(frozen=True)
class DataPosition:
    """Where the sequence of rows stands: step `step` begins at address `row` (`plan.address`). A checkpoint keeps it; a layout with another
    number of rows a step continues from it without leaving out or repeating a document."""

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
        pin: bool,
        arranger: Arranger | None = None,
    ) -> None:
        self.planner, self.assembler, self.pin, self.arranger = planner, assembler, pin, arranger
        self.rank, self.ranks, self.accumulation = data_parallel_rank, data_parallel_size, gradient_accumulation
        self.micro_rows = planner.data.rows_per_micro_batch
        self.skipped = 0
        self._told: set[int] = set()
        self._lock = threading.Lock()  # a trainer reads ahead in a thread while it asks for the address of the step before
        if pin:
            assembler.memory.none = assembler.memory.none.pin_memory()
        together = steps_together(self.micro_rows * gradient_accumulation * planner.data.frames_per_row)
        self._steps: Alone | Workers = Alone(self.rank_rows, assembler, together)
        if workers:
            self._steps = Workers(self.rank_rows, assembler, together, count=workers, micros=gradient_accumulation)
        self.position = position

    @property
    def position(self) -> DataPosition:
        """Where this loader begins; set it to go on from a checkpoint."""
        return self._position

    @position.setter
    def position(self, position: DataPosition) -> None:
        self._position = position
        self._steps.close()
        self._addresses: OrderedDict[int, int] = OrderedDict({position.step: position.row})

    @property
    def rows_per_step(self) -> int:
        """R: rows of one step over all ranks."""
        return self.micro_rows * self.accumulation * self.ranks

    @property
    def order(self) -> dict[str, str]:
        """What a data position belongs to (`Planner.order`): under another one, an address is another row."""
        return self.planner.order

    def phase(self, step: int) -> int:
        """Number of the mix's phase that a step belongs to."""
        return bisect.bisect_right(self.planner.phase_steps, step) - 1

    def first_row(self, step: int) -> int:
        """Address of the first row of `step`; at a change of the mix, the beginning of another sequence."""
        if step < self.position.step:
            raise UserError("a step before the loader's position", seen=step, allowed=f"from {self.position.step}")
        with self._lock:
            phase, begin = self.phase(step), self.planner.phase_steps[self.phase(step)]
            if begin > self.position.step:
                self._addresses.setdefault(begin, 0)
            known = step if step in self._addresses else max(number for number in self._addresses if begin <= number <= step)
            at = self.planner.skip(phase, self._addresses[known], (step - known) * self.rows_per_step)
            self._keep(step, at)
            return at

    def _keep(self, step: int, at: int) -> None:
        self._addresses[step] = at
        while len(self._addresses) > _KEPT_ADDRESSES:  # the loader's own beginning stays
            del self._addresses[next(number for number in self._addresses if number != self.position.step)]

    def step_rows(self, step: int) -> Rows:
        """The rows of a step over all ranks, in the order of the sequence."""
        rows, behind = self.planner.rows(self.phase(step), self.first_row(step), self.rows_per_step)
        if self.phase(step + 1) == self.phase(step):
            with self._lock:
                self._keep(step + 1, behind)
        return rows

    def rank_rows(self, step: int) -> list[Rows]:
        """The rows of this rank's micro-batches; the shards that they need are files of this host then."""
        rows, size = self.step_rows(step), self.micro_rows
        firsts = [(micro * self.ranks + self.rank) * size for micro in range(self.accumulation)]
        return [self._prepared(rows.take(first, first + size)) for first in firsts]

    def _prepared(self, rows: Rows) -> Rows:
        if rows.layout is not None:
            self.assembler.files.prepare(rows.layout.pieces["shard"])
        return rows

    def _arranged(self, batches: list[Batch]) -> list[Batch]:
        """In the order of codes that the model's structure asks for."""
        return batches if self.arranger is None else [self.arranger(batch) for batch in batches]

    def step_batches(self, step: int) -> list[Batch]:
        """The micro-batches of this rank for `step` (counted from 0), in the order of accumulation: a pure function of the step.

        Steps asked for in order are made ahead; any other order costs what is ahead.

        Raises:
            UserError: data that cannot be used; see BatchAssembler.
        """
        batches, lost = self._steps.step(step)
        self._count(lost)
        batches = self._arranged(batches)
        return [batch.pin_memory() for batch in batches] if self.pin else batches

    def _count(self, skipped: int) -> None:
        """Adds up the documents that bad shards took away, and names each such shard once."""
        if not skipped:
            return
        self.skipped += skipped
        for shard in set(self.assembler.files.bad_shards()) - self._told:
            self._told.add(shard)
            logger.warning("shard %s cannot be used: padding stands for its documents", self.planner.clips.shard_name(shard))

    def valid_batches(self, count: int) -> list[Batch]:
        """This rank's part of the first `count` micro-batches of the split, in fixed order; fewer where the split is smaller.

        Micro-batch i goes to rank i mod data_parallel_size; every rank gets the same number, filled up with batches of padding. So all
        ranks together see the same rows under any layout.
        """
        rows = self.planner.first_rows(count * self.micro_rows)
        total = -(-len(rows) // self.micro_rows)
        turns = -(-total // self.ranks)
        rows = pad_rows(rows, turns * self.ranks * self.micro_rows)
        firsts = [(turn * self.ranks + self.rank) * self.micro_rows for turn in range(turns)]
        return self._arranged([self.assembler.batch(self._prepared(rows.take(first, first + self.micro_rows))) for first in firsts])

    def info(self, step: int) -> dict[str, object]:
        """What `step` reads over all ranks: epoch of its first row, address of its first row, and the keys of its documents in order.

        `next_row` with step + 1 is the DataPosition of a checkpoint taken after this step.
        """
        first, rows = self.first_row(step), self.step_rows(step)
        keys = [self.assembler.key(rows.documents, number) for number in range(len(rows.documents))]
        return {"epoch": place(first)[0], "first_row": first, "next_row": self.first_row(step + 1), "keys": keys}

    def metrics(self, step: int) -> dict[str, float]:
        """Where the data stands before `step`: rows (as this layout counts them), the mix's phase, documents lost to bad shards, and, since
        the phase began, the epochs of each task and dataset: how often its clips have come on average. `data/documents` is a checksum of
        which documents the step before read, in order, over all ranks: equal numbers, equal documents (`info` names them)."""
        phase, at = self.phase(step), self.first_row(step)
        epoch, block, row = place(at)
        done = epoch + (block + row / max(1, self.planner.size(phase, epoch, block))) / self.planner.num_blocks
        values = {
            "data/row": float(step * self.rows_per_step),
            "data/phase": float(phase),
            "data/skipped_documents": float(self.skipped),
            "data/repeated_reads": float(self.assembler.files.repeated),
        }
        if step > self.position.step:
            values["data/documents"] = float(zlib.crc32(self.step_rows(step - 1).documents.draw.tobytes()))
        return values | {f"data/epochs/{name}": repeat * done for name, repeat in self.planner.average_repeats(phase).items()}

    def close(self) -> None:
        """Stops the workers and closes the shards."""
        self._steps.close()
        self.assembler.close()
        self.planner.close()


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
    pin: bool = False,
) -> Loader:
    """Opens `data.shards`; the first block is planned with the first step.

    Args:
        split: of any but train nothing is hidden (`data.hide_history`).
        position: where to continue, from the checkpoint (`info(step)["next_row"]`); the beginning unless given.
        pin: batches in page-locked memory, for a GPU.

    Raises:
        UserError: no shards, damaged ones, tasks that no clip serves, shapes that the model does not take.
    """
    if split != "train":
        data = data.model_copy(update={"hide_history": 0.0})
    remotes = _remotes(data)
    clips = load_clips(data.folders, split, remotes)
    files = ShardFiles(clips, verify=data.verify, remotes=remotes)
    options = {"prompt_seconds": data.prompt_seconds, "loss_on": data.loss_on, "prefix_lm": model.prefix_lm}
    typesetter = Typesetter(clips, load_tasks(data.tasks), vocabulary, model.num_codebooks, **options)  # type: ignore[arg-type]
    planner = Planner(clips, data, model, typesetter.lay_out, files.prefetch)
    assembler = BatchAssembler(clips, data, model, typesetter, files)
    _tell(planner, split)
    return Loader(
        planner,
        assembler,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
        gradient_accumulation=gradient_accumulation,
        position=position or DataPosition(),
        workers=data.workers if split == "train" else 0,
        pin=pin,
        arranger=make_arranger(model, vocabulary),
    )


def can_evaluate(data: DataConfig) -> bool:
    """Whether some held-out clip serves a task; says why where none does: a training goes on without, which a few recordings come to."""
    lacks = "no clip in them"
    if not any(has_split(place, "valid", data) for place in data.folders):
        lacks = "no shards valid-*"
    else:
        with suppress(NoClips):
            service = Service(load_clips(data.folders, "valid", _remotes(data)), load_tasks(data.tasks))
            if service.counts.any():
                return True
            lacks = f"none of {len(service.clips)} clips serves {service.why_not([task.name for task in service.tasks])}"
    logger.warning("nothing to evaluate on in %s: %s (docs/data.md: what is held out)", ", ".join(data.folders), lacks)
    return False


def _remotes(data: DataConfig) -> dict[str, Remote]:
    return {place: Remote(place, data) for place in data.folders if is_remote(place)}


def _tell(planner: Planner, split: str) -> None:
    for task, reasons in planner.service.lacking.items():
        if reasons:
            logger.info("split %s, task %s: clips left out: %s", split, task, reasons)
    hours = zip(planner.tasks, planner.service.hours.sum(axis=1).tolist())
    logger.info(
        "split %s: %d clips, %d shards in %d blocks; hours by task: %s",
        split,
        len(planner.clips),
        planner.clips.num_shards,
        planner.num_blocks,
        ", ".join(f"{task.name} {value:.3g}" for task, value in hours),
    )
