"""One reader for the ranks that work on the same rows: the tensor- and pipeline-parallel ranks of one data-parallel rank.

The first of them has a `Loader`; the others get its batches, its position and its faults by broadcast, and open no shard. A step is one
block of bytes (`transfer.pack`) behind a header in JSON. Called in the same order on all of them, as every collective operation.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.loader import DataPosition, Loader
from uniaudio.pretrain.data.memory import BatchMemory
from uniaudio.pretrain.data.transfer import PackedBatches, pack, unpack


class SharedLoader:
    """What the trainer asks of a `Loader`, on a rank that reads for its group (`reader` given) or is read for.

    Args:
        group: gloo, of this data-parallel rank's ranks alone, used for nothing else.
        source: global rank of the reader.
        memory: for text states of micro-batches.
    """

    def __init__(self, reader: Loader | None, group: dist.ProcessGroup, source: int, memory: BatchMemory, *, pin: bool) -> None:
        self.reader, self.group, self.source, self.memory, self.pin = reader, group, source, memory, pin
        self._position = DataPosition()
        self._rows: dict[int, int] = {}
        self._asked: dict[int, int] = {}
        self._metrics: dict[int, dict[str, float]] = {}

    @property
    def position(self) -> DataPosition:
        """Where this loader begins; set it on every rank to go on from a checkpoint."""
        return self._position

    @position.setter
    def position(self, position: DataPosition) -> None:
        self._position = position
        self._rows = {position.step: position.row}
        self._asked = {step: row for step, row in self._asked.items() if step < position.step}
        if self.reader:
            self.reader.position = position

    def step_batches(self, step: int) -> list[Batch]:
        """`Loader.step_batches` of the reader; a UserError of the reader is raised on every rank."""
        return self._share(lambda reader: reader.step_batches(step), step)

    def valid_batches(self, count: int) -> list[Batch]:
        """`Loader.valid_batches` of the reader."""
        return self._share(lambda reader: reader.valid_batches(count), None)

    def _share(self, read: Callable[[Loader], list[Batch]], step: int | None) -> list[Batch]:
        if self.reader is None:
            header, block = self._receive()
            if "fault" in header:
                raise UserError(header["fault"])
            self._note(header, step)
            return unpack(_unpacked(header, block), self.memory)
        try:
            batches = read(self.reader)
        except UserError as error:
            self._send({"fault": str(error)}, torch.empty(0, dtype=torch.uint8))
            raise
        packed = pack(batches, self.reader.assembler.memory)
        header = {"layout": [[field and [str(field[0]).split(".")[1], *field[1:]] for field in batch] for batch in packed.layout]}
        if step is not None:
            header |= {"next_row": self.reader.first_row(step + 1), "metrics": self.reader.metrics(step + 1)}
        self._note(header, step)
        self._send(header, packed.block)
        return batches

    def _note(self, header: dict[str, Any], step: int | None) -> None:
        if step is None:
            return
        self._rows[step + 1], self._metrics[step + 1] = header["next_row"], header["metrics"]
        for kept in (self._rows, self._metrics):
            while len(kept) > 1024:
                del kept[next(iter(kept))]

    def _send(self, header: dict[str, Any], block: torch.Tensor) -> None:
        text = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(text), len(block)]), self.source, group=self.group)
        dist.broadcast(text, self.source, group=self.group)
        if len(block):
            dist.broadcast(block, self.source, group=self.group)

    def _receive(self) -> tuple[dict[str, Any], torch.Tensor]:
        sizes = torch.zeros(2, dtype=torch.int64)
        dist.broadcast(sizes, self.source, group=self.group)
        text = torch.empty(int(sizes[0]), dtype=torch.uint8)
        dist.broadcast(text, self.source, group=self.group)
        block = torch.empty(int(sizes[1]), dtype=torch.uint8, pin_memory=self.pin)
        if len(block):
            dist.broadcast(block, self.source, group=self.group)
        return json.loads(text.numpy().tobytes()), block

    def first_row(self, step: int) -> int:
        """Address of the first row of a step whose predecessor was read lately, at which this loader begins, or that was asked for before:
        a trainer asks when it saves, and again where it goes back to what it saved."""
        self._asked[step] = self._rows[step] if step in self._rows else self._asked[step]
        return self._asked[step]

    def metrics(self, step: int) -> dict[str, float]:
        """`Loader.metrics` of the reader, for a step whose predecessor was read."""
        return self._metrics[step]

    @property
    def order(self) -> dict[str, str]:
        """`Loader.order` on the reader; elsewhere nothing."""
        return self.reader.order if self.reader else {}

    def info(self, step: int) -> dict[str, object]:
        """`Loader.info` on the reader; elsewhere who knows."""
        return self.reader.info(step) if self.reader else {"keys": [f"see rank {self.source}, which read them"]}

    def close(self) -> None:
        """Stops the reader."""
        if self.reader:
            self.reader.close()


AnyLoader = Loader | SharedLoader


def open_shared(
    open_reader: Callable[[], Loader], group: dist.ProcessGroup, source: int, memory: BatchMemory, *, pin: bool
) -> SharedLoader:
    """A SharedLoader; the source opens its reader, and a UserError of that is raised on every rank."""
    shared = SharedLoader(None, group, source, memory, pin=pin)
    if dist.get_rank() != source:
        header, _ = shared._receive()
        if "fault" in header:
            raise UserError(header["fault"])
        return shared
    fault: dict[str, Any] = {}
    try:
        shared.reader = open_reader()
    except UserError as error:
        fault = {"fault": str(error)}
        raise
    finally:
        shared._send(fault, torch.empty(0, dtype=torch.uint8))
    return shared


def _unpacked(header: dict[str, Any], block: torch.Tensor) -> PackedBatches:
    layout = [
        [None if field is None else (getattr(torch, field[0]), tuple(field[1]), field[2]) for field in batch] for batch in header["layout"]
    ]
    return PackedBatches(block, layout)


def reading_group(data_parallel_size: int, tensor_parallel_size: int, world_size: int) -> tuple[dist.ProcessGroup, int]:
    """The gloo group of the ranks that share this rank's rows, and its first rank. Called by all ranks, which make all groups."""
    mine, found = dist.get_rank(), None
    for ranks in sharing_ranks(data_parallel_size, tensor_parallel_size, world_size):
        group = dist.new_group(ranks, backend="gloo")
        if mine in ranks:
            found = group, ranks[0]
    assert found is not None
    return found


def sharing_ranks(data_parallel_size: int, tensor_parallel_size: int, world_size: int) -> list[list[int]]:
    """For each data-parallel rank the global ranks that share its rows, ascending (rank order: `parallel.layout`)."""
    shares: list[list[int]] = [[] for _ in range(data_parallel_size)]
    for rank in range(world_size):
        shares[rank // tensor_parallel_size % data_parallel_size].append(rank)
    return shares
