"""Memory of micro-batches: megabytes each, so it is used again when nobody holds it, and loader processes write straight into it.

A micro-batch lies in one block of bytes, tensor after tensor; a `BatchMemory` hands out slots, a `SharedMemory` has a fixed number of them
that processes forked later share. Knows shapes, not what stands in them.
"""

import math
import mmap
import sys
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

from uniaudio.configs.data import DataConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.data.batch import Batch

_KEPT = 32
_ALIGNMENT = 64
_STATES = "text_states_BSC"
Field = tuple[np.dtype, tuple[int, ...], int]  # dtype, shape, first byte


@dataclass(frozen=True)
class Slot:
    """A block and where its arrays lie. Arrays are made when asked for, so that whoever holds one holds a reference to the block."""

    block: np.ndarray
    fields: OrderedDict[str, Field]

    def array(self, name: str) -> np.ndarray:
        """The array of a field of `Batch`; `used`: (B,) int64, how many of the first states of each row may not be zero."""
        dtype, shape, start = self.fields[name]
        return np.ndarray(shape, dtype, self.block, start)

    def clear_states(self, row: int, count: int) -> np.ndarray:
        """The states (S, C) of a row, all zeros: the caller writes the first `count`, no others."""
        states, used = self.array(_STATES)[row], self.array("used")
        states[: used[row]] = 0
        used[row] = count
        return states

    @property
    def free(self) -> bool:
        """Whether no array, and no tensor made of one, is left."""
        return sys.getrefcount(self.block) == 2  # the slot's, and the argument's


class BatchMemory:
    """Slots of one shape, of this process alone. `none`: zeros (B, S, C) shared by all micro-batches without text, so never written to."""

    def __init__(self, data: DataConfig, model: ModelConfig) -> None:
        B, T, Q = data.rows_per_micro_batch, data.frames_per_row, model.num_codebooks
        D, S, C = data.max_documents_per_row, data.max_text_states_per_row, model.text_width
        shapes = (("int64", (B, T, Q)), ("int8", (B, T, Q)), ("int32", (B, D)), ("int32", (B, D)), ("int32", (B, T)))
        shapes += (("float32", (B, S, C)), ("int32", (B, S)), ("int32", (B, D)), ("int64", (B,)))  # type: ignore[assignment]
        self.fields: OrderedDict[str, Field] = OrderedDict()
        end = 0
        for name, (kind, shape) in zip((*Batch.__dataclass_fields__, "used"), shapes, strict=True):
            self.fields[name] = (np.dtype(kind), shape, end)
            end += math.ceil(math.prod(shape) * np.dtype(kind).itemsize / _ALIGNMENT) * _ALIGNMENT
        self.bytes = end
        self.none = torch.zeros(B, S, C)
        self._slots: list[Slot] = []

    def take(self, count: int) -> list[Slot]:
        """Slots that nobody holds. Their states are zeros but for the first `used`; everything else is left over from before."""
        taken = [slot for slot in self._slots if slot.free][:count]
        while len(taken) < count:
            taken.append(Slot(np.zeros(self.bytes, np.uint8), self.fields))
            if len(self._slots) < _KEPT:
                self._slots.append(taken[-1])
        return taken

    def batch(self, slot: Slot) -> Batch:
        """The tensors of a slot that is filled; the slot is taken as long as one of them lives."""
        has_text = slot.array("used").any()
        names = Batch.__dataclass_fields__
        return Batch(*(self.none if name == _STATES and not has_text else torch.from_numpy(slot.array(name)) for name in names))


class SharedMemory:
    """`count` slots shared with processes forked later. A slot is promised to a process, filled by it, and delivered here.

    held: slots that batches may hold; of more than that there are copies, so that of the others as many are free as are not promised.
    """

    def __init__(self, memory: BatchMemory, count: int, *, held: int) -> None:
        self.memory, self.held = memory, held
        shared = mmap.mmap(-1, memory.bytes * count)
        blocks = (np.frombuffer(shared, np.uint8, memory.bytes, number * memory.bytes) for number in range(count))
        self.slots = [Slot(block, memory.fields) for block in blocks]
        self._promised: set[int] = set()

    def promise(self) -> int:
        """Number of a free slot, promised to whoever is told of it."""
        number = next(number for number, slot in enumerate(self.slots) if number not in self._promised and slot.free)
        self._promised.add(number)
        return number

    def deliver(self, number: int) -> Batch:
        """The batch that a process has filled a slot with: its tensors, or copies of them."""
        self._promised.discard(number)
        held = sum(number not in self._promised and not slot.free for number, slot in enumerate(self.slots))
        batch = self.memory.batch(self.slots[number])
        if held < self.held:
            return batch
        return Batch(*(tensor if tensor is self.memory.none else tensor.clone() for tensor in batch.as_tuple()))
