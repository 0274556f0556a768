"""The numbers of a training: loss by task and level beside the unigram entropy of the same codes, speed, MFU, and their file.

Owns names and units. Losses are nats a code. `metrics.jsonl` has one line a step (and one an evaluation) with floats at full precision, so
that two runs can be compared bit for bit.
"""

import functools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from uniaudio.atomic import publish_bytes
from uniaudio.configs.estimate import frame_flops
from uniaudio.configs.flops import PEAK_FLOPS
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.parallel.tensor import padded_rows

Metrics = dict[str, float]
logger = get_logger("metrics")


def mean_loss(sums_KQ: torch.Tensor, counts_KQ: torch.Tensor) -> float:
    """Nats a code over all tasks and levels."""
    return float(sums_KQ.double().cpu().sum() / counts_KQ.double().cpu().sum())


def loss_metrics(sums_KQ: torch.Tensor, counts_KQ: torch.Tensor, tasks: Sequence[str], *, prefix: str = "") -> Metrics:
    """`loss`, `loss/task/NAME` and `loss/level/q` from sums over target codes; tasks without a code are left out."""
    sums, counts = sums_KQ.double().cpu(), counts_KQ.double().cpu()
    metrics = {f"{prefix}loss": mean_loss(sums, counts)}
    for index, task in enumerate(tasks):
        if counts[index].sum() > 0:
            metrics[f"{prefix}loss/task/{task}"] = float(sums[index].sum() / counts[index].sum())
    for level in range(counts.shape[1]):
        if counts[:, level].sum() > 0:
            metrics[f"{prefix}loss/level/{level}"] = float(sums[:, level].sum() / counts[:, level].sum())
    return metrics


def count_codes(batches: Sequence[Batch], num_tasks: int, vocabulary_size: int) -> torch.Tensor:
    """Histogram (K, Q, V) int64 of the target codes of some micro-batches, on the CPU.

    In numpy: torch's threads wait for each other at every small operation, 40 ms a step on a host whose cores are busy.
    """
    levels = batches[0].codes_BTQ.shape[2]
    offsets_Q = np.arange(levels) * vocabulary_size
    histograms = []
    for batch in batches:
        rows, frames, _ = batch.codes_BTQ.shape  # of structures that arrange codes, another one each
        ends_BD = np.column_stack([batch.document_starts_BD.numpy(), np.full(rows, frames, dtype=np.int32)])
        lengths_BD = np.diff(ends_BD, axis=1)
        tasks_X = np.repeat(batch.task_ids_BD.numpy().ravel(), lengths_BD.ravel()).astype(np.int64)
        bins_XQ = (tasks_X * (levels * vocabulary_size))[:, None] + offsets_Q + batch.codes_BTQ.numpy().reshape(-1, levels)
        counted = batch.target_mask_BTQ.numpy().reshape(-1, levels).astype(bool)
        histograms.append(np.bincount(bins_XQ[counted], minlength=num_tasks * levels * vocabulary_size))
    histogram = functools.reduce(np.add, histograms)  # of one batch as it is: another megabyte of fresh memory costs a millisecond
    return torch.from_numpy(histogram).view(num_tasks, levels, vocabulary_size)


def unigram_metrics(histogram_KQV: torch.Tensor, tasks: Sequence[str], *, prefix: str = "") -> Metrics:
    """What the best model that knows only how often each code occurs at each level (and task) would pay on these very codes.

    `unigram`, `unigram/task/NAME`, `unigram/level/q` in nats a code: entropies of the codes' own histogram, a level (of a task) at a
    time. It is fitted on the codes that it is measured on, so a model that pays less on held-out codes beats any unigram model.
    """
    total = histogram_KQV.sum()
    levels_QV = histogram_KQV.sum(dim=0)
    metrics = {f"{prefix}unigram": float(_entropy_sum(levels_QV) / total)}
    for level, counts in enumerate(levels_QV):
        if counts.sum() > 0:
            metrics[f"{prefix}unigram/level/{level}"] = float(_entropy_sum(counts) / counts.sum())
    for index, task in enumerate(tasks):
        if histogram_KQV[index].sum() > 0:
            metrics[f"{prefix}unigram/task/{task}"] = float(_entropy_sum(histogram_KQV[index]) / histogram_KQV[index].sum())
    return metrics


def _entropy_sum(counts: torch.Tensor) -> torch.Tensor:
    """Sum over rows of (number of codes x entropy of the row), in nats."""
    counts = counts.double()
    totals = counts.sum(dim=-1, keepdim=True).clamp(min=1)
    return -(torch.xlogy(counts, counts / totals)).sum()


def peak_flops(device: torch.device) -> tuple[float, str]:
    """FLOP/s that one process's device can do, and where the number comes from: the data sheet, else a matrix product timed here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for key, peak in PEAK_FLOPS.items():
            if key in name:
                return peak, f"{key} data sheet, dense bf16"
    size, best = (4096 if device.type == "cuda" else 512), float("inf")
    x = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    for _ in range(5):
        start = time.perf_counter()
        float((x @ x)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, f"measured {size}^3 product"


class Speed:
    """Frames/s over all ranks and MFU (`configs.flops`: model FLOPs a frame x frames/s / peak of all devices)."""

    def __init__(self, run: RunConfig, vocabulary_size: int, device: torch.device) -> None:
        peak, self.source = peak_flops(device)
        rows = padded_rows(vocabulary_size)
        self._frames = run.frames_per_step
        self._share = frame_flops(run, rows) / (peak * run.parallel.world_size)
        self._since = time.perf_counter()

    def lap(self, steps: int) -> Metrics:
        """Speed of the `steps` since the last lap."""
        now = time.perf_counter()
        rate, self._since = steps * self._frames / (now - self._since), now
        return {"frames_per_second": rate, "mfu": self.mfu(rate), "seconds_per_step": self._frames / rate}

    def mfu(self, frames_per_second: float) -> float:
        """Share of all devices' peak at this speed."""
        return frames_per_second * self._share

    def skip(self) -> None:
        """Leaves out the time since the last lap (an evaluation, a checkpoint)."""
        self._since = time.perf_counter()


def process_start() -> float:
    """When this process began, in seconds since 1970: before its imports, which take their time too."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


@dataclass
class Clock:
    """What of the time since a training's first start made steps that count; carried through restarts by the checkpoints.

    first_start: seconds since 1970. productive: seconds of the steps that led to the present weights.
    """

    first_start: float = field(default_factory=process_start)
    productive: float = 0.0

    def metrics(self) -> Metrics:
        """`goodput`: their share; the rest went to starts, saving, evaluation, queues and steps that were lost."""
        return {"goodput": self.productive / max(1e-9, time.time() - self.first_start)}

    def record(self) -> dict[str, float]:
        """For a checkpoint's manifest."""
        return asdict(self)


def system_metrics(device: torch.device) -> Metrics:
    """Memory of this process in GB, and of its GPU with the peak since the last call."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    metrics = {"system/memory_gb": pages * os.sysconf("SC_PAGE_SIZE") / 1e9, "system/load": os.getloadavg()[0]}
    if device.type == "cuda":
        metrics["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        metrics["system/gpu_reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    return metrics


class MetricsFile:
    """`metrics.jsonl`: appended line by line; a resumed run first drops what lies behind its checkpoint."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._unwritten = b""
        if (came_to := self._open(resume_step)) > resume_step:
            logger.warning(
                "the training before came to step %d, or further: the steps behind %d were not saved and are trained again",
                came_to, resume_step,
            )  # fmt: skip

    def drop_after(self, step: int) -> None:
        """A training has gone back to this step: the lines behind it go."""
        self._handle.close()
        self._open(step)

    def _open(self, resume_step: int) -> int:
        """Begins behind `resume_step`; returns the last step that the file told of before, 0 for none."""
        written = self._path.read_bytes() if self._path.exists() else b""
        lines = (written + self._unwritten).splitlines(keepends=True)
        publish_bytes(self._path, b"".join(_up_to(resume_step, lines, self._path)))
        self._unwritten = b""
        self._handle = self._path.open("ab", buffering=0)
        return next((step for line in reversed(lines) if (step := _step_of(line)) is not None), 0)

    def write(self, step: int, metrics: Metrics) -> None:
        """Appends a line. On a full disk it is kept for the next call: that is the checkpoint writer's to end a training for."""
        told = bool(self._unwritten)
        self._unwritten += (json.dumps({"step": step, **metrics}) + "\n").encode()
        if (fault := self._try_to_write()) and not told:
            logger.warning("%s cannot be written (%s); its lines are kept in memory", self._path, fault)

    def close(self) -> None:
        """Closes the file; lines that were kept are tried once more."""
        if fault := self._try_to_write():
            logger.warning("%s lacks its last %d lines: it cannot be written (%s)", self._path, self._unwritten.count(b"\n"), fault)
        self._handle.close()

    def _try_to_write(self) -> str | None:
        """Appends what is not written yet; what the disk says against it."""
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._handle.write(self._unwritten) :]
        except OSError as error:
            return error.strerror
        return None


def _up_to(step: int, lines: list[bytes], path: Path) -> list[bytes]:
    """The lines of steps up to `step`; what lies behind them goes, readable or not: a kill may have torn the last one.

    Raises:
        UserError: one between them cannot be read.
    """
    steps = [_step_of(line) for line in lines]
    end = max((number for number, found in enumerate(steps, start=1) if found is not None and found <= step), default=0)
    for number, found in enumerate(steps[:end], start=1):
        if found is None:
            raise UserError(
                f"{path}, line {number} is no line of metrics",
                seen=lines[number - 1][:80],
                allowed='{"step": 1, ...}',
                remedy="remove the line, or move the file elsewhere: a new one begins, and the training goes on from its checkpoint alike",
            )
    return [line for line, found in zip(lines[:end], steps) if found is not None and found <= step]


def _step_of(line: bytes) -> int | None:
    """None where the line is torn, or none of `MetricsFile`'s."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, LookupError, TypeError):
        return None
    return step if isinstance(step, int) else None
