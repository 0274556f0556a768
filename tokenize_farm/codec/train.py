"""Codec training: schedule, log, saving and resuming. The mathematics of a step is `step.py`'s.

Writes below `output_dir`: `log.jsonl` (one object a line), `state.pt` (everything a restart needs), and
`codec.safetensors` (the moving average of the weights, what `load_codec` reads).
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from uniaudio.atomic import publish_file
from uniaudio.configs.codec import CodecConfig, CodecTrainConfig
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.codec.data import PackedRecordings
from uniaudio.tokenize_farm.codec.step import STATISTICS, CodecStep
from uniaudio.tokenize_farm.codec.weights import save_codec

log = get_logger(__name__)


def rate_share(train: CodecTrainConfig, step: int, progress: float) -> float:
    """Share of the peak learning rate: linear warm-up, a plateau to `decay_from`, then a cosine to zero at progress 1."""
    warm = min(1.0, (step + 1) / (train.warmup_steps + 1))
    late = min(1.0, max(0.0, (progress - train.decay_from) / max(1e-9, 1 - train.decay_from)))
    return warm * 0.5 * (1 + math.cos(math.pi * late))


class CodecTraining:
    """A training that can stop and go on: `run()` trains until the schedule, or this call's time, is over."""

    def __init__(self, config: CodecConfig, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self.device, self.clock = config, device, clock
        self.output = Path(config.output_dir)
        self.step, self.seconds = 0, 0.0
        torch.manual_seed(config.train.seed)
        if device.type == "cuda":  # mel filters and code search in TF32: training only
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        data = PackedRecordings(config.data, config.data.segment_frames * config.model.hop, device)
        self.work = CodecStep(config, data, device)
        if (self.output / "state.pt").exists():
            self._load()
        else:
            self.work.initialize()

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end of the schedule, by steps or by time, whichever is further."""
        train = self.config.train
        by_time = self.seconds / 60 / train.max_minutes if train.max_minutes else 0.0
        return min(1.0, max(self.step / train.max_steps, by_time))

    def run(self, *, max_seconds: float | None = None, report: Callable[[float, str], None] = lambda done, text: None) -> float:
        """Trains until progress is 1 or `max_seconds` of this call are over, saves, and returns the progress.

        `report(progress, text)` is called at every log line. Raises UserError when the losses are no longer finite.
        """
        train = self.config.train
        begun, before, saved, revived = self.clock(), self.seconds, self.clock(), torch.zeros((), device=self.device)
        while self.progress < 1 and (max_seconds is None or self.seconds - before < max_seconds):
            progress = self.progress
            self.work.set_rates(rate_share(train, self.step, progress))
            self.work.run(discriminate=progress >= train.discriminate_from)
            self.step += 1
            if self.step % train.revive_every == 0 and progress < train.revive_until:
                revived += self.work.codec.quantizer.revive(train.revive_below)
            if self.step % train.log_every == 0:
                report(self.progress, self._log(progress, revived))
            self.seconds = before + self.clock() - begun
            if self.clock() - saved > train.save_every_minutes * 60:
                self.save()
                saved = self.clock()
        self.save()
        return self.progress

    def _log(self, progress: float, revived: torch.Tensor) -> str:
        """Writes one line of figures; the only place that waits for the device."""
        values = dict(zip(STATISTICS, self.work.statistics.tolist()))
        if not all(math.isfinite(value) for value in values.values()):
            raise UserError(
                "codec training diverged: a loss is not finite", seen=values, remedy="lower train.lr, or resume from the last save"
            )
        used = [round(float((level.usage > 0.1).float().mean()), 3) for level in self.work.codec.quantizer.levels]
        line = {"step": self.step, "seconds": round(self.seconds, 1), "progress": round(progress, 4)}
        line |= {name: round(value, 5) for name, value in values.items()} | {"used": used, "revived": int(revived)}
        revived.zero_()
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return f"step {self.step} mel {values['mel']:.4f} loudness {values['loudness']:.3f} used {min(used):.2f}"

    def save(self) -> None:
        """Publishes the state for a restart, and the weights to use."""
        state = {"step": self.step, "seconds": self.seconds, "config": self.config.model_dump_json(), "work": self.work.state()}
        with publish_file(self.output / "state.pt") as temporary:
            torch.save(state, temporary)
        notes = {
            "steps": str(self.step),
            "minutes": f"{self.seconds / 60:.1f}",
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU",
        }
        save_codec(self.output / "codec.safetensors", self.work.average, notes=notes)

    def _load(self) -> None:
        state = torch.load(self.output / "state.pt", map_location=self.device, weights_only=True)
        theirs = CodecConfig.model_validate_json(state["config"])
        if theirs.model != self.config.model:
            raise UserError("output_dir holds the state of a codec of another shape", seen=theirs.model, remedy="choose another output_dir")
        self.step, self.seconds = state["step"], state["seconds"]
        self.work.load_state(state["work"])
        log.info("resumed at step %d after %.1f minutes", self.step, self.seconds / 60)
