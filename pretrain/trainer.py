"""The loop: batches of a step, the step, its numbers, evaluation, checkpoints, and a clean end on a signal.

Owns the order of things and what is done how often. Everything that must agree between ranks (stop, save, fail) is decided from values
that are equal on all of them. While the device works on a step the host fetches the next one's batches; between two steps the device waits
only until the host has read the numbers that it decides by: they are written out when the next step is under way.
"""

import functools
import logging
import math
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.checkpoint import Identity, restore
from uniaudio.pretrain.checkpoint_writer import CheckpointWriter
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.loader import DataPosition
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
from uniaudio.pretrain.optim import learning_rate
from uniaudio.pretrain.progress import Progress
from uniaudio.pretrain.spikes import SpikeDetector
from uniaudio.pretrain.starting import SAVED, say_nothing_trained
from uniaudio.pretrain.stopwatch import trace
from uniaudio.pretrain.tracking import Tracker
from uniaudio.pretrain.watchdog import Watchdog

PREEMPTED = SAVED
STOP, LACK, FAULT = 1, 2, 3  # what a rank asks of all: save and leave; the same, its data cannot be made; fail together
logger = get_logger("trainer")


MAX_SKIPPED = 10  # steps in a row whose loss or gradient is not finite, before a policy of `skip` stops too
MAX_REWINDS = 3  # without a new checkpoint between them


def works_meanwhile(device: torch.device) -> bool:
    """Whether the device works on a step while the host goes on."""
    return device.type != "cpu"


class NonFiniteLoss(UserError):
    """The loss or the gradient is not a number; the weights are those of the step before."""


class LossSpike(UserError):
    """The loss jumps again and again, whatever batches are left out."""


@dataclass(frozen=True)
class StepNumbers:
    """What `StepStatistics` says, on the CPU, of a step at this learning rate."""

    step: int
    loss_sums_KQ: torch.Tensor
    counts_KQ: torch.Tensor
    gradient_norm: float
    rate: float


@dataclass(frozen=True)
class Told:
    """Steps that are read and decided on, and not written out yet. codes, lap: histogram of the target codes, and speed, of all that were
    read, up to step `last`; a step that ends the training or is gone back from is the last to be told of."""

    steps: list[StepNumbers]
    last: int
    codes: torch.Tensor
    lap: Metrics


@dataclass
class Outputs:
    """Where rank 0 writes; all None on the others."""

    tracker: Tracker | None = None
    file: MetricsFile | None = None
    progress: Progress | None = None


class Trainer:
    """One training from `start` to `run.train.steps`. Step s (1 is the first) uses `loader.step_batches(s - 1)`."""

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        *,
        train: AnyLoader,
        valid: AnyLoader | None,
        outputs: Outputs,
        watchdog: Watchdog,
        start: int,
        clock: Clock | None = None,
    ) -> None:
        self.engine, self.identity, self.outputs = engine, identity, outputs
        self.run, self.train, self.valid = identity.run, train, valid
        settings = self.run.train
        self._root = Path(settings.output_dir) / "checkpoints"
        self._writer = CheckpointWriter(self._root, engine, identity, keep=settings.keep_checkpoints, keep_every=settings.keep_every)
        self.step, self._saved = start, start
        self._pending: list[tuple[int, StepStatistics, float]] = []
        self._codes: torch.Tensor | None = None
        self._told: Told | None = None
        self._data_seconds = 0.0
        self._speed = Speed(self.run, identity.vocabulary.size, engine.device)
        self._spikes = SpikeDetector(settings.spike_deviations)
        self._skipped, self._rewinds = 0, 0
        self._watchdog, self._begun = watchdog, False
        self._clock = Clock() if clock is None else clock

    def fit(self, came: Collection[int]) -> int:
        """Trains; returns 0 at the last step, PREEMPTED after a signal. `came`: those that have come, noted elsewhere.

        Raises:
            UserError: a loss that is not finite, a checkpoint that cannot be written, or data that cannot be used (after saving).
        """
        settings = self.run.train
        with ThreadPoolExecutor(1) as thread:
            ahead = thread if self.run.data.workers == 0 else None  # with workers the loader reads ahead, and must not fork from a thread
            profiler = trace(Path(settings.output_dir) / "profile", self.engine.layout.rank) if settings.profile else None
            batches, lack = self._wait_for(self._load(ahead))
            while self.step < settings.steps:
                self._watchdog.enter(self.step + 1, "step")
                asked = self.engine.greatest(FAULT if self._writer.failed else LACK if lack else STOP if came else 0)
                if asked == FAULT:
                    self._writer.wait()  # raises
                if asked == LACK:
                    raise self._leave_without_data(lack)
                if asked == STOP:
                    return self._leave()
                self.step, self._begun = self.step + 1, True
                upcoming = self._load(ahead)
                self._train_step(batches)
                if profiler:
                    profiler.step()
                batches, lack = self._wait_for(upcoming)
                if spike := self._finish_step():
                    self._rewind(spike)
                    batches, lack = self._wait_for(self._load(ahead))
            if profiler:
                profiler.stop()
            self._writer.wait()
            self._writer.close()
            self._watchdog.close()
        return 0

    def _finish_step(self) -> int | None:
        """What is due after a step: reading its numbers, an evaluation, a checkpoint. A loss spike ends it: the step of it."""
        settings = self.run.train
        last = self.step == settings.steps
        save = last or self.step % settings.save_every == 0
        evaluate = last or (settings.evaluate_every > 0 and self.step % settings.evaluate_every == 0)
        if (save or evaluate or self.step % settings.log_every == 0) and (spike := self._read()):
            return spike
        if save or evaluate or not works_meanwhile(self.engine.device):
            self._tell()
        if evaluate:
            self._watchdog.enter(self.step, "evaluation")
            self._evaluate()
        if save:
            self._watchdog.enter(self.step, "checkpoint")
            self._save()
        if save or evaluate:
            self._speed.skip()
        return None

    def _wait_for(self, upcoming: Callable[[], list[Batch]]) -> tuple[list[Batch], UserError | None]:
        """The batches of the next step, or why this rank has none. What was queued of this step runs meanwhile."""
        self._watchdog.enter(self.step + 1, "data")
        before, batches, lack = time.perf_counter(), list[Batch](), None
        try:
            batches = upcoming()
        except UserError as error:
            lack = error
        self._data_seconds += time.perf_counter() - before
        self._watchdog.enter(self.step, "end of the step")
        return batches, lack

    def _load(self, ahead: ThreadPoolExecutor | None) -> Callable[[], list[Batch]]:
        """What gives the batches of the next step; with `ahead` they are read meanwhile."""
        if self.step >= self.run.train.steps:
            return list
        if ahead is None:
            return functools.partial(self.train.step_batches, self.step)
        return ahead.submit(self.train.step_batches, self.step).result

    def _train_step(self, batches: list[Batch]) -> None:
        rate = learning_rate(self.run.optim, self.step, self.run.train.steps)
        statistics = self.engine.train_step(batches, learning_rate=rate)
        self._tell()
        self._pending.append((self.step, statistics, rate))
        codes = count_codes(batches, len(self.run.data.tasks), self.identity.vocabulary.size)
        self._codes = codes if self._codes is None else self._codes.add_(codes)
        if self.outputs.progress:
            self.outputs.progress.advance(self.step)

    def _read(self) -> int | None:
        """Waits for the statistics of the steps since the last reading and checks them; the step of a loss spike, if any."""
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
            self._told = Told(steps[:number], steps[-1].step, codes, lap)
            loss = mean_loss(read.loss_sums_KQ, read.counts_KQ)
            self._require_finite(read.step, loss, read.gradient_norm)
            if self._spikes.sees(loss):
                self._tell()
                return read.step
        return None

    def _tell(self) -> None:
        """Writes out what was read."""
        if self._told is None:
            return
        told, self._told = self._told, None
        tasks = self.run.data.tasks
        unigram = unigram_metrics(self.engine.sum_over_data(told.codes), tasks)
        for read in told.steps:
            metrics = loss_metrics(read.loss_sums_KQ, read.counts_KQ, tasks)
            metrics |= {"learning_rate": read.rate, "gradient_norm": read.gradient_norm, **self._position(read.step)}
            if read.step == told.last:
                metrics |= {**unigram, **told.lap, **system_metrics(self.engine.device)}
            self._write(read.step, metrics)
        if read.step == told.last:
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
        self._clock.productive += steps * lap["seconds_per_step"]
        parts = {"data": self._data_seconds / steps, **self.engine.stopwatch.read()}
        self._data_seconds = 0.0
        stages = self.run.parallel.pipeline_parallel_size  # of a pipeline differ from each other
        self._watchdog.tell_own(parts["data"] + (parts.get("forward", 0.0) if stages == 1 else 0.0))
        return lap | {f"seconds/{part}": seconds for part, seconds in parts.items()} | self._clock.metrics()

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

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        """The same values on all ranks, so all of them decide alike. The step itself has changed nothing (see `Engine`)."""
        if math.isfinite(loss) and math.isfinite(norm) and norm >= 0:
            self._skipped = 0
            return
        self._skipped += 1
        seen = f"loss {loss}, gradient norm {norm}; documents {self.train.info(step - 1)}"
        if self.run.train.on_non_finite == "skip" and self._skipped < MAX_SKIPPED:
            logger.error("step %d: the loss or the gradient is not finite; its update is left out | seen: %s", step, seen)
            return
        self._tell()
        raise NonFiniteLoss(
            f"step {step}: the loss or the gradient is not finite; stopped without saving",
            seen=seen,
            remedy=f"a lower optim.lr or optim.clip_norm, or leave the documents out; the last checkpoint is of step {self._saved}",
        )

    def _rewind(self, spike: int) -> None:
        """Back to the newest checkpoint, and on with the batches behind those up to the spike."""
        self._writer.wait()
        self._rewinds += 1
        restored = restore(self._root, self.engine, self.identity.vocabulary)
        if restored is None or self._rewinds > MAX_REWINDS:
            raise LossSpike(
                f"step {spike}: the loss is far above the recent ones (over {self._spikes.limit:.4f})",
                seen="no checkpoint to go back to"
                if restored is None
                else f"{MAX_REWINDS} times since the checkpoint of step {restored.step}",
                remedy="a lower optim.lr, another seed of the data, or train.spike_deviations=0 to let it pass",
            )
        behind = self.train.first_row(self.step)
        logger.error(
            "step %d: the loss is far above the recent ones (over %.4f); back to step %d, without the batches of steps %d to %d",
            spike, self._spikes.limit, restored.step, restored.step + 1, self.step,
        )  # fmt: skip
        self._spikes.forget()
        self.step = self._saved = restored.step
        self._clock = Clock(**restored.manifest["clock"])
        self.train.position = DataPosition(restored.step, behind)
        if self.outputs.file:
            self.outputs.file.drop_after(restored.step)
        self._speed.skip()

    def _evaluate(self) -> None:
        if self.valid is None:
            return
        batches = self.valid.valid_batches(self.run.train.evaluate_batches)
        statistics = self.engine.evaluate(batches)
        tasks = self.run.data.tasks
        codes = self.engine.sum_over_data(count_codes(batches, len(tasks), self.identity.vocabulary.size))
        metrics = loss_metrics(statistics.loss_sums_KQ, statistics.counts_KQ, tasks, prefix="valid/")
        metrics |= unigram_metrics(codes, tasks, prefix="valid/")
        self._write(self.step, metrics)
        logger.info("step %d  held-out loss %.4f (unigram %.4f)", self.step, metrics["valid/loss"], metrics["valid/unigram"])

    def _save(self) -> None:
        self._writer.save(self.step, next_row=self.train.first_row(self.step), order=self.train.order, clock=self._clock.record())
        self._saved, self._rewinds = self.step, 0

    def _settle(self, why: str) -> None:
        """Before it leaves in the middle: saves what is not saved yet, but for weights behind a loss spike."""
        spike = self._read()
        self._tell()
        if spike:
            logger.error(
                "step %d: the loss is far above the recent ones (over %.4f); nothing behind the last checkpoint is saved",
                spike, self._spikes.limit,
            )  # fmt: skip
        elif self.step > self._saved:
            logger.info("%s: saving step %d", why, self.step)
            self._save()
        self._writer.wait()
        self._watchdog.close()

    def _leave_without_data(self, lack: UserError | None) -> UserError:
        """Some rank cannot make its share of the next step (`lack`: this one); its fault, on all ranks."""
        self._settle("the data of the next step cannot be made")
        texts = self.engine.gather(str(lack) if lack else "")
        return lack or UserError(next(text for text in texts if text))

    def _leave(self) -> int:
        """A signal has come to some rank."""
        self._settle("asked to stop")
        if not self._begun:
            say_nothing_trained()
            return PREEMPTED
        goes_on = f"step {self._saved} is saved; the same command goes on from there"
        begins = "no step is saved; the same command begins again"
        level = logging.INFO if self.engine.layout.rank else logging.WARNING  # rank 0 speaks for all
        logger.log(level, "asked to stop: %s (exit code %d)", goes_on if self._saved else begins, PREEMPTED)
        return PREEMPTED
