"""Writing checkpoints beside the training: `save` copies the state to host memory, a thread writes it, and a rename publishes it.

Owns the files' order of writing, the agreement of the ranks on it, and how many checkpoints stay; the form is `pretrain.checkpoint`'s.
Each data-parallel rank writes its share of the parameters, in several files at once. One checkpoint is on its way at a time: a second
`save` waits for the first. A folder without a manifest is no checkpoint, so a kill at any moment leaves the ones before whole.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uniaudio.atomic import fsync_directory, publish_bytes
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.checkpoint import MANIFEST, Identity, folder_of, make_manifest, manifest_bytes, published
from uniaudio.pretrain.engine import Engine
from uniaudio.pretrain.parallel.named_state import MOMENTS, Slot
from uniaudio.pretrain.parallel.tensor import TensorParallel
from uniaudio.pretrain.tensor_file import TensorFileWriter

FILES_OF_A_RANK = 4  # of each kind: hashing bounds one file, so several are written at once
LEAST_BYTES = 64 << 20  # of state a file, before another one pays
Entry = tuple[str, torch.dtype, tuple[int, ...]]
logger = get_logger("checkpoint")


@dataclass
class HostFile:
    """One file of this rank: what it will hold, and the host memory that the device copies into (`pinned`: its address at CUDA)."""

    name: str
    entries: list[Entry]
    tensors: dict[str, torch.Tensor]
    pinned: int | None = None


class CheckpointWriter:
    """Checkpoints of one training under `root`. Every method is a collective call, but for `failed`.

    keep: how many of the newest stay; keep_every: those of a multiple of so many steps stay for good (0: none).
    """

    def __init__(self, root: Path, engine: Engine, identity: Identity, *, keep: int, keep_every: int = 0) -> None:
        self.root, self._engine, self._identity = root, engine, identity
        self._keep, self._keep_every = keep, keep_every
        layout = engine.layout
        tag = f"pp{layout.pipeline_rank:02d}-tp{layout.tensor.rank:02d}"
        parts = _split(engine, written_here(engine.slots, layout.tensor), layout.data_parallel_size)
        self._parts = {
            f"{tag}-{index:03d}": slots
            for index, slots in enumerate(parts)
            if index % layout.data_parallel_size == layout.data_parallel_rank
        }
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=self._enter_device)
        self._files: Future[dict[str, list[HostFile]]] = self._thread.submit(self._allocate)  # pinning gigabytes takes seconds
        self._pending: Future[str | None] | None = None
        self._step = 0
        if layout.rank == 0:
            for stale in root.glob(".step-*.tmp"):  # of a run that was killed while it wrote
                shutil.rmtree(stale, ignore_errors=True)

    @property
    def failed(self) -> bool:
        """The checkpoint on its way has met a fault; `wait` raises it. The same on all ranks, but not at the same moment."""
        return self._pending is not None and self._pending.done() and self._pending.result() is not None

    def save(self, step: int, *, next_row: int, order: dict[str, str] | None = None, clock: dict[str, float] | None = None) -> None:
        """Takes the state as it is now; returns once the copies to host memory are on their way.

        next_row: where the data goes on, in the order of `order` (`Loader.order`). clock: how the training's time was spent.

        Raises:
            UserError: on every rank, where the folder cannot be made, or the checkpoint before could not be written.
        """
        self.wait()
        self._step = step
        temporary = self.root / f".{folder_of(self.root, step).name}.tmp"
        if fault := _on_rank_zero(self._engine, lambda: _fresh(temporary)):
            raise self._error(fault)
        rng = _rng_states(self._engine)
        copied = self._snapshot()
        beside = {"clock": clock or {}, "data_order": order or {}}
        self._pending = self._thread.submit(self._write, temporary, {"step": step, "row": next_row}, beside, rng, copied)

    def wait(self) -> None:
        """Until the checkpoint on its way is published.

        Raises:
            UserError: on every rank, where one could not write (a full disk, say); earlier checkpoints are left whole.
        """
        pending, self._pending = self._pending, None
        if pending and (fault := pending.result()):
            raise self._error(fault)

    def close(self) -> None:
        """Ends the thread, when nothing is on its way any more, and gives the host memory back."""
        self._thread.shutdown()
        for file in [file for part in self._files.result().values() for file in part]:
            if file.pinned is not None:  # freed while CUDA has it registered, the same address could never be registered again
                torch.cuda.cudart().cudaHostUnregister(file.pinned)
                file.pinned = None

    def _error(self, fault: str) -> UserError:
        left = published(self.root)
        return UserError(
            f"cannot write the checkpoint of step {self._step} to {self.root}",
            seen=fault,
            remedy=f"make room, then start again: it resumes from {left[-1].name if left else 'the beginning'}",
        )

    # ---- to host memory ----

    def _enter_device(self) -> None:
        """The thread's CUDA calls belong to this rank's GPU: a new thread stands on the first one, and would take memory there."""
        if self._engine.device.type == "cuda":
            torch.cuda.set_device(self._engine.device)

    def _allocate(self) -> dict[str, list[HostFile]]:
        """The files of each of this rank's parts, with the memory that they are written from."""
        files = {}
        for tag, slots in self._parts.items():
            weights, optimizer = _entries(self._engine, slots)
            files[tag] = [
                _host_file(f"{kind}-{tag}.safetensors", entries, self._engine.device)
                for kind, entries in (("weights", weights), ("optimizer", optimizer))
            ]
        return files

    def _snapshot(self) -> torch.cuda.Event | None:
        """Copies this rank's parts in stream order: the next update of the weights comes after, and the host does not wait."""
        files = self._files.result()
        targets = {name: tensor for part in files.values() for file in part for name, tensor in file.tensors.items()}
        own = {slot.name for slots in self._parts.values() for slot in slots}
        self._engine.state.link()
        for slot in self._engine.slots:
            tensors = self._engine.state.read(slot)  # collective over the data-parallel ranks
            if slot.name in own:
                for key, tensor in tensors.items():
                    targets[slot.name if key == "weight" else f"{slot.name}.{key}"].copy_(tensor, non_blocking=True)
        if self._engine.device.type != "cuda":
            return None
        copied = torch.cuda.Event()
        copied.record()
        return copied

    # ---- to disk, in the thread ----

    def _write(
        self,
        temporary: Path,
        position: dict[str, int],
        beside: dict[str, Any],
        rng: dict[str, torch.Tensor],
        copied: torch.cuda.Event | None,
    ) -> str | None:
        """Writes, agrees with the other ranks, publishes; the fault as text, the same on all ranks, None where it went well."""
        if copied is not None:
            copied.synchronize()
        reports = self._engine.gather(self._write_rank(temporary, rng), background=True)
        faults = [report for report in reports if isinstance(report, str)]
        final = folder_of(self.root, position["step"])
        fault = faults[0] if faults else self._on_rank_zero(lambda: _publish(temporary, final, position, beside, self._identity, reports))
        if fault:
            logger.error("the checkpoint of step %d was not written: %s", position["step"], fault)
            self._on_rank_zero(lambda: shutil.rmtree(temporary, ignore_errors=True))
            return fault
        if kept := self._on_rank_zero(lambda: _prune(self.root, self._keep, self._keep_every, position["step"])):
            logger.warning("an old checkpoint could not be removed: %s", kept)
        if self._engine.layout.rank == 0:
            logger.info("checkpoint %s", final)
        return None

    def _on_rank_zero(self, action: Callable[[], None]) -> str | None:
        return _on_rank_zero(self._engine, action, background=True)

    def _write_rank(self, folder: Path, rng: dict[str, torch.Tensor]) -> dict[str, Any] | str:
        """This rank's files, several at once; what the manifest says of them, or the fault as text."""
        layout = self._engine.layout
        files = [file for part in self._files.result().values() for file in part]
        files.append(
            HostFile(f"rng-{layout.rank:05d}.safetensors", [(name, state.dtype, tuple(state.shape)) for name, state in rng.items()], rng)
        )
        try:
            with ThreadPoolExecutor(min(len(files), len(os.sched_getaffinity(0)))) as pool:
                written = dict(pool.map(lambda file: _write_file(folder, file), files))
        except OSError as error:
            return f"rank {layout.rank}: {error}"
        parameters = {slot.name: _describe(slot, tag) for tag, slots in self._parts.items() for slot in slots}
        return {"files": written, "parameters": parameters}


def written_here(slots: Sequence[Slot], tensor: TensorParallel) -> list[Slot]:
    """Of a stage's parameters those that this tensor-parallel rank writes: its parts of what is cut, a share of what all have whole."""
    loads, mine = [0] * tensor.size, []
    for slot in slots:
        writer = tensor.rank
        if not slot.cut:
            writer = loads.index(min(loads))
            loads[writer] += math.prod(slot.shape)
        if writer == tensor.rank:
            mine.append(slot)
    return mine


def _split(engine: Engine, slots: Sequence[Slot], data_parallel_size: int) -> list[list[Slot]]:
    """The slots in order as runs of about equal bytes: some for each data-parallel rank, fewer where the model is small."""
    sizes = [
        sum(dtype.itemsize * torch.Size(shape).numel() for entries in _entries(engine, [slot]) for _, dtype, shape in entries)
        for slot in slots
    ]
    count = max(1, min(data_parallel_size * FILES_OF_A_RANK, sum(sizes) // LEAST_BYTES))
    parts: list[list[Slot]] = [[] for _ in range(count)]
    before = 0
    for slot, size in zip(slots, sizes):
        parts[min(count - 1, (before + size // 2) * count // max(1, sum(sizes)))].append(slot)
        before += size
    return parts


def _entries(engine: Engine, slots: Sequence[Slot]) -> tuple[list[Entry], list[Entry]]:
    """What the two files of these slots hold: this rank's cuts without padding rows."""
    weights, optimizer = [], []
    keys = MOMENTS if engine.dtype == torch.float32 else (*MOMENTS, "master")
    for slot in slots:
        shape = list(slot.shape)
        if slot.partition_dim is not None:
            shape[slot.partition_dim] = slot.valid
        weights.append((slot.name, engine.dtype, tuple(shape)))
        if slot.trained:
            optimizer += [(f"{slot.name}.{key}", torch.float32, tuple(shape)) for key in keys]
    return weights, optimizer


def _host_file(name: str, entries: list[Entry], device: torch.device) -> HostFile:
    """Memory for a file: one block, registered with CUDA so that the device copies into it by itself (pin_memory would round it up)."""
    sizes = [dtype.itemsize * torch.Size(shape).numel() for _, dtype, shape in entries]
    block = torch.empty(sum(sizes), dtype=torch.uint8)
    pinned = None
    if device.type == "cuda" and block.numel():
        fault = torch.cuda.cudart().cudaHostRegister(block.data_ptr(), block.numel(), 0)
        pinned = None if int(fault) else block.data_ptr()
        if int(fault):
            logger.warning("host memory for checkpoints is not pinned (CUDA error %d): saving will stall the training longer", int(fault))
    tensors, start = {}, 0
    for (entry, dtype, shape), size in zip(entries, sizes):
        tensors[entry] = block[start : start + size].view(dtype).view(shape)
        start += size
    return HostFile(name, entries, tensors, pinned)


def _rng_states(engine: Engine) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if engine.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(engine.device)
    return states


def _write_file(folder: Path, file: HostFile) -> tuple[str, dict[str, Any]]:
    with TensorFileWriter(folder / file.name, file.entries) as writer:
        for name, *_ in file.entries:
            writer.write(name, file.tensors[name])
    return file.name, {"sha256": writer.digest, "bytes": writer.size}


def _describe(slot: Slot, tag: str) -> dict[str, Any]:
    part = {"tag": tag, "start": slot.start, "stop": slot.start + slot.valid}
    return {"shape": list(slot.shape), "dim": slot.partition_dim, "parts": [part]}


def _fresh(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _on_rank_zero(engine: Engine, action: Callable[[], None], *, background: bool = False) -> str | None:
    """Runs `action` on rank 0 while the others wait; its OSError as text on every rank, None where it went well."""
    fault = None
    if engine.layout.rank == 0:
        try:
            action()
        except OSError as error:
            fault = str(error)
    return next((text for text in engine.gather(fault, background=background) if text), None)


def _publish(
    temporary: Path, final: Path, position: dict[str, int], beside: dict[str, Any], identity: Identity, reports: Iterable[dict[str, Any]]
) -> None:
    files: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for report in reports:
        files |= report["files"]
        for name, entry in report["parameters"].items():
            parameters.setdefault(name, {**entry, "parts": []})["parts"] += entry["parts"]
    manifest = make_manifest(identity, position, files, parameters) | beside
    publish_bytes(temporary / MANIFEST, manifest_bytes(manifest))
    if final.exists():  # a damaged one that a resume went behind
        shutil.rmtree(final)
    os.replace(temporary, final)
    fsync_directory(final.parent)


def _prune(root: Path, keep: int, keep_every: int, written: int) -> None:
    """Up to the one just written: later ones are damaged, a resume went behind them, and they do not count."""
    steps = {path: int(path.name.removeprefix("step-")) for path in published(root)}
    for path in [path for path in steps if steps[path] <= written][:-keep]:
        if keep_every and steps[path] % keep_every == 0:
            continue
        retired = path.with_name(f".{path.name}.old.tmp")  # no checkpoint from here on, and swept at the next start where a kill comes
        os.replace(path, retired)
        shutil.rmtree(retired)
