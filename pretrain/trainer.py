"""The loop: batches of a step, the step, its numbers, evaluation, checkpoints, and a clean end on a signal.

Owns the order of things and what is done how often. Everything that must agree between ranks (stop, save, fail) is decided from values
that are equal on all of them. While the device works on a step the host fetches the next one's batches; between two steps the device waits
only until the host has read the numbers that it decides by: they are written out when the next step is under way.
"""

import functools
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.checkpoint import Identity, restore
from uniaudio.pretrain.checkpoint_writer import CheckpointWriter
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.loader import DataPosition
from uniaudio.pretrain.data.shared import AnyLoader
from uniaudio.pretrain.engine import Engine
from uniaudio.pretrain.metrics import Clock
from uniaudio.pretrain.optim import learning_rate
from uniaudio.pretrain.starting import SAVED, say_nothing_trained
from uniaudio.pretrain.step_log import Outputs, StepLog
from uniaudio.pretrain.stopwatch import trace
from uniaudio.pretrain.watchdog import Watchdog

PREEMPTED = SAVED
STOP, LACK, FAULT = 1, 2, 3  # what a rank asks of all: save and leave; the same, its data cannot be made; fail together
MAX_REWINDS = 3  # without a new checkpoint between them
logger = get_logger("trainer")


def works_meanwhile(device: torch.device) -> bool:
    """Whether the device works on a step while the host goes on."""
    return device.type != "cpu"


class LossSpike(UserError):
    """The loss jumps again and again, whatever batches are left out."""


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
        self._log = StepLog(engine, identity, train=train, outputs=outputs, watchdog=watchdog, clock=Clock() if clock is None else clock)
        self._watchdog, self._begun, self._rewinds = watchdog, False, 0

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
        if (save or evaluate or self.step % settings.log_every == 0) and (spike := self._log.read(self._saved)):
            return spike
        if save or evaluate or not works_meanwhile(self.engine.device):
            self._log.tell()
        if evaluate:
            self._watchdog.enter(self.step, "evaluation")
            self._evaluate()
        if save:
            self._watchdog.enter(self.step, "checkpoint")
            self._save()
        if save or evaluate:
            self._log.skip_time()
        return None

    def _wait_for(self, upcoming: Callable[[], list[Batch]]) -> tuple[list[Batch], UserError | None]:
        """The batches of the next step, or why this rank has none. What was queued of this step runs meanwhile."""
        self._watchdog.enter(self.step + 1, "data")
        before, batches, lack = time.perf_counter(), list[Batch](), None
        try:
            batches = upcoming()
        except UserError as error:
            lack = error
        self._log.waited(time.perf_counter() - before)
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
        self._log.tell()
        self._log.add(self.step, statistics, rate, batches)

    def _rewind(self, spike: int) -> None:
        """Back to the newest checkpoint, and on with the batches behind those up to the spike."""
        self._writer.wait()
        self._rewinds += 1
        restored = restore(self._root, self.engine, self.identity.vocabulary)
        if restored is None or self._rewinds > MAX_REWINDS:
            raise LossSpike(
                f"step {spike}: the loss is far above the recent ones (over {self._log.spikes.limit:.4f})",
                seen="no checkpoint to go back to"
                if restored is None
                else f"{MAX_REWINDS} times since the checkpoint of step {restored.step}",
                remedy="a lower optim.lr, another seed of the data, or train.spike_deviations=0 to let it pass",
            )
        behind = self.train.first_row(self.step)
        logger.error(
            "step %d: the loss is far above the recent ones (over %.4f); back to step %d, without the batches of steps %d to %d",
            spike, self._log.spikes.limit, restored.step, restored.step + 1, self.step,
        )  # fmt: skip
        self._log.spikes.forget()
        self.step = self._saved = restored.step
        self._log.clock = Clock(**restored.manifest["clock"])
        self.train.position = DataPosition(restored.step, behind)
        if self.outputs.file:
            self.outputs.file.drop_after(restored.step)
        self._log.skip_time()

    def _evaluate(self) -> None:
        if self.valid is None:
            return
        batches = self.valid.valid_batches(self.run.train.evaluate_batches)
        self._log.held_out(self.step, self.engine.evaluate(batches), batches)

    def _save(self) -> None:
        self._writer.save(self.step, next_row=self.train.first_row(self.step), order=self.train.order, clock=self._log.clock.record())
        self._saved, self._rewinds = self.step, 0

    def _settle(self, why: str) -> None:
        """Before it leaves in the middle: saves what is not saved yet, but for weights behind a loss spike."""
        spike = self._log.read(self._saved)
        self._log.tell()
        if spike:
            logger.error(
                "step %d: the loss is far above the recent ones (over %.4f); nothing behind the last checkpoint is saved",
                spike, self._log.spikes.limit,
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
