"""A step's micro-batches as one block of bytes, to cross between ranks at the cost of one tensor instead of eight a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.memory import BatchMemory

_ALIGNMENT = 64
_STATES = [field.name for field in fields(Batch)].index("text_states_BSC")
_PLACES = [field.name for field in fields(Batch)].index("text_positions_BS")
Field = tuple[torch.dtype, tuple[int, ...], int]  # dtype, shape, first byte


@dataclass(frozen=True)
class PackedBatches:
    """block: (bytes,) uint8. layout: for each batch its fields in order; of the text states those that stand somewhere, (n, C), or None
    for a batch without text."""

    block: torch.Tensor
    layout: list[list[Field | None]]


def pack(batches: Sequence[Batch], memory: BatchMemory) -> PackedBatches:
    """Copies the batches into one block; text states that are zeros everywhere are left out."""
    layout: list[list[Field | None]] = []
    sources: list[tuple[torch.Tensor, Field]] = []
    end = 0
    for batch in batches:
        row: list[Field | None] = []
        for number, tensor in enumerate(batch.as_tuple()):
            if number == _STATES:
                if tensor is memory.none:
                    row.append(None)
                    continue
                tensor = tensor[batch.text_positions_BS >= 0]
            row.append(field := (tensor.dtype, tuple(tensor.shape), end))
            sources.append((tensor, field))
            end += math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT
        layout.append(row)
    block = torch.empty(end, dtype=torch.uint8)
    for tensor, field in sources:
        _view(block, field).copy_(tensor)
    return PackedBatches(block, layout)


def unpack(packed: PackedBatches, memory: BatchMemory) -> list[Batch]:
    """The batches as views of the block: the inverse of `pack`."""
    return [_unpack(packed.block, row, memory) for row in packed.layout]


def _unpack(block: torch.Tensor, row: Sequence[Field | None], memory: BatchMemory) -> Batch:
    tensors = [memory.none if field is None else _view(block, field) for field in row]
    if row[_STATES] is not None:
        standing = tensors[_PLACES] >= 0
        counts = (standing * torch.arange(1, standing.shape[1] + 1)).amax(dim=1)
        (slot,) = memory.take(1)
        for place, count in enumerate(counts.tolist()):
            slot.clear_states(place, count)
        states = torch.from_numpy(slot.array("text_states_BSC"))
        states[standing] = tensors[_STATES]
        tensors[_STATES] = states.pin_memory() if block.is_pinned() else states
    return Batch(*tensors)


def _view(block: torch.Tensor, field: Field) -> torch.Tensor:
    dtype, shape, start = field
    return block[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
