"""A step's micro-batches as one block of bytes, to cross from a loader process at the cost of one tensor instead of eight a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from uniaudio.pretrain.data.batch import Batch

_ALIGNMENT = 64
Field = tuple[torch.dtype, tuple[int, ...], int]  # dtype, shape, first byte


@dataclass(frozen=True)
class PackedBatches:
    """block: (bytes,) uint8. layout: for each batch its fields in order; None for the text states of a batch without text. skipped:
    documents that became padding because their shard was bad."""

    block: torch.Tensor
    layout: list[list[Field | None]]
    skipped: int = 0

    def pin_memory(self) -> "PackedBatches":
        """The same in page-locked memory, from which copies to a GPU need not be waited for."""
        return replace(self, block=self.block.pin_memory())


def pack(batches: Sequence[Batch], no_states: torch.Tensor, *, skipped: int = 0) -> PackedBatches:
    """Copies the batches into one block; text states that are `no_states` itself (zeros that every process has) are left out."""
    layout: list[list[Field | None]] = []
    end = 0
    for batch in batches:
        fields: list[Field | None] = []
        for tensor in batch.as_tuple():
            if tensor is no_states:
                fields.append(None)
                continue
            fields.append((tensor.dtype, tuple(tensor.shape), end))
            end += math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT
        layout.append(fields)
    packed = PackedBatches(torch.empty(end, dtype=torch.uint8), layout, skipped)
    for source, copy in zip(batches, unpack(packed, no_states)):
        for tensor, target in zip(source.as_tuple(), copy.as_tuple()):
            if target is not no_states:
                target.copy_(tensor)
    return packed


def unpack(packed: PackedBatches, no_states: torch.Tensor) -> list[Batch]:
    """The batches as views of the block: the inverse of `pack`."""
    return [Batch(*(no_states if field is None else _view(packed.block, *field) for field in fields)) for fields in packed.layout]


def _view(block: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> torch.Tensor:
    return block[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
