"""The numbers of a training's steps: left on the device by a step, read and checked together, written out when the device is busy again.

Owns what is measured of a step and where it goes. Does not own when (`trainer`), nor names and units (`metrics`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.checkpoint import Identity
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.shared import AnyLoader
from uniaudio.pretrain.engine import Engine, StepStatistics
from uniaudio.pretrain.metrics import (
    Clock,
    Metrics,
    MetricsFile,
    Speed,
    count_codes,
    loss_metrics,
    mean_loss,
    system_metrics,
    unigram_metrics,
)
from uniaudio.pretrain.progress import Progress
from uniaudio.pretrain.spikes import SpikeDetector
from uniaudio.pretrain.tracking import Tracker
from uniaudio.pretrain.watchdog import Watchdog

MAX_SKIPPED = 10  # steps in a row whose loss or gradient is not finite, before a policy of `skip` stops too
logger = get_logger("trainer")


class NonFiniteLoss(UserError):
    """The loss or the gradient is not a number; the weights are those of the step before."""


@dataclass
class Outputs:
    """Where rank 0 writes; all None on the others."""

    tracker: Tracker | None = None
    file: MetricsFile | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class StepNumbers:
    """What `StepStatistics` says, on the CPU, of a step at this learning rate."""

    step: int
    loss_sums_KQ: torch.Tensor
    counts_KQ: torch.Tensor
    gradient_norm: float
    rate: float


@dataclass(frozen=True)
class Unwritten:
    """Steps that are read and decided on, and not written out yet. codes, lap: histogram of the target codes, and speed, of all that were
    read, up to step `last`; a step that ends the training or is gone back from is the last to be told of."""

    steps: list[StepNumbers]
    last: int
    codes: torch.Tensor
    lap: Metrics


class StepLog:
    """Of one training. `add` a step, `read` what was added (the host waits for the device), `tell` what was read.

    train: the loader of its steps. clock: replaced where the training goes back to a checkpoint.
    """

    def __init__(self, engine: Engine, identity: Identity, *, train: AnyLoader, outputs: Outputs, watchdog: Watchdog, clock: Clock) -> None:
        self.engine, self.run, self.train, self.outputs, self.clock = engine, identity.run, train, outputs, clock
        self.spikes = SpikeDetector(self.run.train.spike_deviations)
        self._vocabulary_size = identity.vocabulary.size
        self._speed = Speed(self.run, identity.vocabulary.size, engine.device)
        self._watchdog = watchdog
        self._pending: list[tuple[int, StepStatistics, float]] = []
        self._codes: torch.Tensor | None = None
        self._unwritten: Unwritten | None = None
        self._data_seconds = 0.0
        self._skipped = 0

    def add(self, step: int, statistics: StepStatistics, rate: float, batches: Sequence[Batch]) -> None:
        """What a step at this learning rate left on the device, and the batches that it took."""
        self._pending.append((step, statistics, rate))
        codes = count_codes(batches, len(self.run.data.tasks), self._vocabulary_size)
        self._codes = codes if self._codes is None else self._codes.add_(codes)
        if self.outputs.progress:
            self.outputs.progress.advance(step)

    def waited(self, seconds: float) -> None:
        """The host waited so long for batches."""
        self._data_seconds += seconds

    def skip_time(self) -> None:
        """The time since the last reading was no step's: an evaluation, a checkpoint."""
        self._speed.skip()

    def read(self, saved: int) -> int | None:
        """Waits for the statistics of the steps since the last reading and checks them; the step of a loss spike, if any.

        saved: step of the newest checkpoint.

        Raises:
            NonFiniteLoss: what was read until then is told.
        """
        if not self._pending:
            return None
        assert self._codes is not None
        steps = [
            StepNumbers(
                step, on.loss_sums_KQ.cpu(), on.counts_KQ.cpu(), math.nan if on.gradient_norm is None else float(on.gradient_norm), rate
            )
            for step, on, rate in self._pending
        ]
        codes, self._codes, self._pending = self._codes, None, []
        lap = self._lap(len(steps))
        for number, read in enumerate(steps, start=1):
            self._unwritten = Unwritten(steps[:number], steps[-1].step, codes, lap)
            loss = mean_loss(read.loss_sums_KQ, read.counts_KQ)
            self._require_finite(read.step, loss, read.gradient_norm, saved)
            if self.spikes.sees(loss):
                self.tell()
                return read.step
        return None

    def tell(self) -> None:
        """Writes out what was read."""
        if self._unwritten is None:
            return
        unwritten, self._unwritten = self._unwritten, None
        tasks = self.run.data.tasks
        unigram = unigram_metrics(self.engine.sum_over_data(unwritten.codes), tasks)
        for read in unwritten.steps:
            metrics = loss_metrics(read.loss_sums_KQ, read.counts_KQ, tasks)
            metrics |= {"learning_rate": read.rate, "gradient_norm": read.gradient_norm, **self._position(read.step)}
            if read.step == unwritten.last:
                metrics |= {**unigram, **unwritten.lap, **system_metrics(self.engine.device)}
            self._write(read.step, metrics)
        if read.step == unwritten.last:
            self._say(read, metrics)

    def _say(self, read: StepNumbers, metrics: Metrics) -> None:
        if self.outputs.tracker:
            self.outputs.tracker.flush()
        shown = [metrics[key] for key in ("loss", "unigram", "learning_rate", "gradient_norm", "frames_per_second", "mfu")]
        form = "step %d/%d  loss %.4f (unigram %.4f)  lr %.2e  norm %.3f  %.0f frames/s  MFU %.1f %%"
        logger.info(form, read.step, self.run.train.steps, *shown[:-1], 100 * shown[-1])

    def _lap(self, steps: int) -> Metrics:
        """Speed, goodput, the parts of a step: of the `steps` since the last lap."""
        lap = self._speed.lap(steps)
        self.clock.productive += steps * lap["seconds_per_step"]
        parts = {"data": self._data_seconds / steps, **self.engine.stopwatch.read()}
        self._data_seconds = 0.0
        stages = self.run.parallel.pipeline_parallel_size  # of a pipeline differ from each other
        self._watchdog.tell_own(parts["data"] + (parts.get("forward", 0.0) if stages == 1 else 0.0))
        return lap | {f"seconds/{part}": seconds for part, seconds in parts.items()} | self.clock.metrics()

    def _position(self, step: int) -> Metrics:
        """Where the data stands after a step: rows, frames, and epochs of each task."""
        metrics = self.train.metrics(step)
        return {**metrics, "data/frames": metrics["data/row"] * self.run.data.frames_per_row}

    def _write(self, step: int, metrics: Metrics) -> None:
        if self.outputs.file:
            self.outputs.file.write(step, metrics)
        if self.outputs.tracker:
            self.outputs.tracker.log(step, {key: value for key, value in metrics.items() if math.isfinite(value)})
        if self.outputs.progress and "loss" in metrics:
            self.outputs.progress.show(metrics["loss"])

    def _require_finite(self, step: int, loss: float, norm: float, saved: int) -> None:
        """The same values on all ranks, so all of them decide alike. The step itself has changed nothing (see `Engine`)."""
        if math.isfinite(loss) and math.isfinite(norm) and norm >= 0:
            self._skipped = 0
            return
        self._skipped += 1
        seen = f"loss {loss}, gradient norm {norm}; documents {self.train.info(step - 1)}"
        if self.run.train.on_non_finite == "skip" and self._skipped < MAX_SKIPPED:
            logger.error("step %d: the loss or the gradient is not finite; its update is left out | seen: %s", step, seen)
            return
        self.tell()
        raise NonFiniteLoss(
            f"step {step}: the loss or the gradient is not finite; stopped without saving",
            seen=seen,
            remedy=f"a lower optim.lr or optim.clip_norm, or leave the documents out; the last checkpoint is of step {saved}",
        )

    def held_out(self, step: int, statistics: StepStatistics, batches: Sequence[Batch]) -> None:
        """Writes out an evaluation behind this step, over these batches of this rank."""
        tasks = self.run.data.tasks
        codes = self.engine.sum_over_data(count_codes(batches, len(tasks), self._vocabulary_size))
        metrics = loss_metrics(statistics.loss_sums_KQ, statistics.counts_KQ, tasks, prefix="valid/")
        metrics |= unigram_metrics(codes, tasks, prefix="valid/")
        self._write(step, metrics)
        logger.info("step %d  held-out loss %.4f (unigram %.4f)", step, metrics["valid/loss"], metrics["valid/unigram"])
