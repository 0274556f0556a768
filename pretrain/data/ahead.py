"""Steps made ahead of the trainer, several at a time: by this process, or by loader processes that write into shared memory.

What a step is made of costs some fixed work for each call of the assembler and each message to a process, so short steps go together. Which
rows a step has is the loader's business; neither the number of processes nor how many steps go together changes a byte.
"""

import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.dataset import BatchAssembler
from uniaudio.pretrain.data.documents import Rows, join
from uniaudio.pretrain.data.memory import SharedMemory, Slot
from uniaudio.signals import WITH_CTRL_C

_FRAMES_TOGETHER = 2**18
_MOST_TOGETHER = 8
_ASKED_PER_WORKER = 2
_HELD_STEPS = 4  # steps whose batches lie in shared memory while the trainer holds them; of more it gets copies

RowsOf = Callable[[int], list[Rows]]  # a step's number -> the rows of its micro-batches
Made = int | UserError  # documents of a step that a bad shard took away, or why the step cannot be made


def steps_together(frames: int) -> int:
    """How many steps of this rank go together, each of so many frames."""
    return max(1, min(_MOST_TOGETHER, _FRAMES_TOGETHER // frames))


def _fill(assembler: BatchAssembler, steps: Sequence[list[Rows]], slots: Sequence[list[Slot]]) -> list[Made]:
    """Fills the slots of steps. Where one cannot be made it is the last of the list: those before it are whole."""
    try:
        lost = iter(assembler.fill(join([rows for step in steps for rows in step]), [slot for step in slots for slot in step]))
        return [sum(next(lost) for _ in step) for step in steps]
    except UserError as error:
        if len(steps) == 1:
            return [error]
    made: list[Made] = []
    while len(made) < len(steps) and not (made and isinstance(made[-1], UserError)):
        made += _fill(assembler, [steps[len(made)]], [slots[len(made)]])
    return made


class Alone:
    """Steps made in this process; ahead only where they are asked for in order, and more and more of them together."""

    def __init__(self, rows_of: RowsOf, assembler: BatchAssembler, together: int) -> None:
        self.rows_of, self.assembler, self.together = rows_of, assembler, together
        self._made: dict[int, tuple[list[Batch], Made]] = {}
        self._next, self._size = -1, 1

    def step(self, step: int) -> tuple[list[Batch], int]:
        """The batches of a step, and how many of its documents were lost; UserError where it cannot be made."""
        if step not in self._made:
            self._size = min(self.together, 2 * self._size) if step == self._next else 1
            numbers = range(step, step + self._size)
            rows = [self.rows_of(number) for number in numbers]
            free = iter(self.assembler.memory.take(sum(map(len, rows))))
            slots = [[next(free) for _ in step_rows] for step_rows in rows]
            outcomes = _fill(self.assembler, rows, slots)
            filled = [[self.assembler.memory.batch(slot) for slot in step_slots] for step_slots in slots]
            self._made = dict(zip(numbers, zip(filled, outcomes)))
        self._next = step + 1
        batches, made = self._made.pop(step)
        if isinstance(made, UserError):
            raise made
        return batches, made

    def close(self) -> None:
        """Forgets what is ahead."""
        self._made = {}


def _let_the_trainer_stop(worker: int) -> None:
    """Schedulers (and `timeout`) signal every process of a job; the trainer saves first, and takes a worker's death for a fault.

    A SIGTERM of the trainer's own does end it: that is how an interpreter that ends, after a fault say, gets rid of what it has not closed,
    and it waits for that without end.
    """
    for number in WITH_CTRL_C:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what is ignored cannot be waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before there are other threads, which take the mask over
    threading.Thread(target=_end_with_the_trainer, args=(os.getppid(),), name="trainer's end", daemon=True).start()


def _end_with_the_trainer(trainer: int) -> None:
    while (info := signal.sigwaitinfo({signal.SIGTERM})) is None or info.si_pid != trainer:
        pass
    os._exit(0)


class Workers:
    """Steps made by `count` processes, forked with the first step and again where another than the next is asked for."""

    def __init__(self, rows_of: RowsOf, assembler: BatchAssembler, together: int, *, count: int, micros: int) -> None:
        self.rows_of, self.assembler, self.together, self.count, self.micros = rows_of, assembler, together, count, micros
        self._next = -1
        self._coming: Iterator[_Request] | None = None
        self._came: deque[tuple[list[int], Made]] = deque()

    def step(self, step: int) -> tuple[list[Batch], int]:
        """The batches of a step, and how many of its documents were lost; UserError where it cannot be made."""
        if self._coming is None or step != self._next:
            self.close()
            self._coming = self._fork(step)
        self._next = step + 1
        if not self._came:
            request = next(self._coming)
            self._came.extend(zip(request.slots, request.made))
        slots, made = self._came.popleft()
        if isinstance(made, UserError):
            self.close()  # what was asked for behind it begins at another step
            raise made
        return [self._shared.deliver(slot) for slot in slots], made

    def close(self) -> None:
        """Ends the processes. (Dropped with this object they would live on: their iterator refers to the loader, which refers to this.)"""
        self._coming = None
        self._came.clear()

    def _fork(self, step: int) -> "Iterator[_Request]":
        asked = _ASKED_PER_WORKER * self.count + 1
        held = _HELD_STEPS * self.micros
        self._shared = SharedMemory(self.assembler.memory, asked * self.together * self.micros + held, held=held)
        loader = DataLoader(
            _Filler(self.assembler, self._shared),
            batch_size=None,
            sampler=_Requests(self, self._shared, step),  # type: ignore[arg-type]
            num_workers=self.count,
            multiprocessing_context="fork",
            prefetch_factor=_ASKED_PER_WORKER,
            worker_init_fn=_let_the_trainer_stop,
        )
        return iter(loader)


@dataclass(frozen=True)
class _Request:
    """Steps that a process is asked for: the slots to fill, with which rows; and, on its way back, what came of it and no rows."""

    slots: list[list[int]]
    rows: list[list[Rows]]
    made: list[Made]


class _Requests:
    """What the processes are asked for, one request after another. Iterated in the trainer's process."""

    def __init__(self, workers: Workers, shared: SharedMemory, step: int) -> None:
        self.workers, self.shared, self.step = workers, shared, step

    def __iter__(self) -> Iterator[_Request]:
        step, workers = self.step, self.workers
        for number in itertools.count():
            doublings = number // (2 * _ASKED_PER_WORKER * workers.count)  # the first step is not to wait for others
            size = min(workers.together, 2**doublings)
            rows = [workers.rows_of(each) for each in range(step, step + size)]
            yield _Request([[self.shared.promise() for _ in step_rows] for step_rows in rows], rows, [])
            step += size


class _Filler(Dataset[_Request]):
    """Fills the slots of a request. A UserError is handed over as a value, so that it stays one line; anything else is raised by torch."""

    def __init__(self, assembler: BatchAssembler, shared: SharedMemory) -> None:
        self.assembler, self.shared = assembler, shared

    def __getitem__(self, request: _Request) -> _Request:
        slots = [[self.shared.slots[slot] for slot in step] for step in request.slots]
        return _Request(request.slots, [], _fill(self.assembler, request.rows, slots))
