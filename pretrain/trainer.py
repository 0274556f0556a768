"""The loop: batches of a step, the step, its numbers, evaluation, checkpoints, and a clean end on a signal.

Owns the order of things and what is done how often. Everything that must agree between ranks (stop, save, fail) is decided from values
that are equal on all of them.
"""

import functools
import math
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain import launch
from uniaudio.pretrain.checkpoint import Identity
from uniaudio.pretrain.checkpoint_writer import CheckpointWriter
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.loader import Loader
from uniaudio.pretrain.engine import Engine, StepStatistics
from uniaudio.pretrain.metrics import Metrics, MetricsFile, Speed, count_codes, loss_metrics, unigram_metrics
from uniaudio.pretrain.optim import learning_rate
from uniaudio.pretrain.progress import Progress
from uniaudio.pretrain.tracking import Tracker

PREEMPTED = launch.SAVED
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP, FAULT = 1, 2  # what a rank asks of all: save and leave; fail together
logger = get_logger("trainer")


class NonFiniteLoss(UserError):
    """The loss or the gradient is not a number; nothing was saved since."""


@dataclass
class Outputs:
    """Where rank 0 writes; all None on the others."""

    tracker: Tracker | None = None
    file: MetricsFile | None = None
    progress: Progress | None = None


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """The signals among SIGTERM and SIGUSR1 that have come, in a list that fills by itself."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Trainer:
    """One training from `start` to `run.train.steps`. Step s (1 is the first) uses `loader.step_batches(s - 1)`."""

    def __init__(self, engine: Engine, identity: Identity, *, train: Loader, valid: Loader | None, outputs: Outputs, start: int) -> None:
        self.engine, self.identity, self.outputs = engine, identity, outputs
        self.run, self.train, self.valid = identity.run, train, valid
        settings = self.run.train
        root = Path(settings.output_dir) / "checkpoints"
        self._writer = CheckpointWriter(root, engine, identity, keep=settings.keep_checkpoints, keep_every=settings.keep_every)
        self.step, self._saved = start, start
        self._pending: list[tuple[int, StepStatistics, float]] = []
        self._codes: torch.Tensor | None = None
        self._speed = Speed(self.run, identity.vocabulary.size, engine.device)

    def fit(self) -> int:
        """Trains; returns 0 at the last step, PREEMPTED after a signal.

        Raises:
            UserError: a loss that is not finite, or a checkpoint that cannot be written.
        """
        settings = self.run.train
        with stop_requests() as came, ThreadPoolExecutor(1) as thread:
            ahead = thread if self.run.data.workers == 0 else None  # with workers the loader reads ahead, and must not fork from a thread
            upcoming = self._load(ahead)
            while self.step < settings.steps:
                asked = self.engine.greatest(FAULT if self._writer.failed else STOP if came else 0)
                if asked == FAULT:
                    self._writer.wait()  # raises
                if asked == STOP:
                    return self._leave()
                batches = upcoming()
                self.step += 1
                upcoming = self._load(ahead)
                self._train_step(batches)
                last = self.step == settings.steps
                save = last or self.step % settings.save_every == 0
                evaluate = last or (settings.evaluate_every > 0 and self.step % settings.evaluate_every == 0)
                if save or evaluate or self.step % settings.log_every == 0:
                    self._flush()
                if evaluate:
                    self._evaluate()
                if save:
                    self._save()
                if save or evaluate:
                    self._speed.skip()
            self._writer.wait()
            self._writer.close()
        return 0

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
        self._pending.append((self.step, statistics, rate))
        codes = count_codes(batches, len(self.run.data.tasks), self.identity.vocabulary.size)
        self._codes = codes if self._codes is None else self._codes + codes
        if self.outputs.progress:
            self.outputs.progress.advance(self.step)

    def _flush(self) -> None:
        """Reads the statistics of the steps since the last flush, checks them, and writes them out."""
        if not self._pending:
            return
        assert self._codes is not None
        tasks = self.run.data.tasks
        unigram = unigram_metrics(self.engine.sum_over_data(self._codes), tasks)
        losses = [
            loss_metrics(statistics.loss_sums_KQ, statistics.counts_KQ, tasks) for _, statistics, _ in self._pending
        ]  # waits for the device
        speed = self._speed.lap(len(self._pending))
        pending, self._pending, self._codes = self._pending, [], None
        for (step, statistics, rate), metrics in zip(pending, losses):
            norm = statistics.gradient_norm
            metrics |= {"learning_rate": rate, "gradient_norm": math.nan if norm is None else float(norm), **self._position(step)}
            if step == pending[-1][0]:
                metrics |= {**unigram, **speed}
            self._write(step, metrics)
            self._require_finite(step, metrics)
        if self.outputs.tracker:
            self.outputs.tracker.flush()
        form = "step %d/%d  loss %.4f (unigram %.4f)  lr %.2e  norm %.3f  %.0f frames/s  MFU %.1f %%"
        loss, norm, rate = (losses[-1][key] for key in ("loss", "gradient_norm", "learning_rate"))
        logger.info(
            form, pending[-1][0], self.run.train.steps, loss, unigram["unigram"], rate, norm, speed["frames_per_second"], 100 * speed["mfu"]
        )

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

    def _require_finite(self, step: int, metrics: Metrics) -> None:
        """The same values on all ranks, so all of them stop here."""
        if math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"]) and metrics["gradient_norm"] >= 0:
            return
        raise NonFiniteLoss(
            f"step {step}: the loss or the gradient is not finite; stopped without saving",
            seen=f"loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}; documents {self.train.info(step - 1)}",
            remedy=f"a lower optim.lr or optim.clip_norm, or leave the documents out; the last checkpoint is of step {self._saved}",
        )

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
        self._writer.save(self.step, next_row=self.train.first_row(self.step))
        self._saved = self.step

    def _leave(self) -> int:
        """A signal has come to some rank: save what is not saved yet."""
        self._flush()
        if self.step > self._saved:
            self._save()
        self._writer.wait()
        logger.warning("asked to stop: step %d is saved; the same command goes on from there (exit code %d)", self.step, PREEMPTED)
        return PREEMPTED
