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
from uniaudio.tokenize_farm.codec.group import Group
from uniaudio.tokenize_farm.codec.step import STATISTICS, CodecStep
from uniaudio.tokenize_farm.codec.weights import load_codec, save_codec

log = get_logger(__name__)
ALONE = Group()
SHOWN = ("mel", "quality", "intelligibility", "least_used")


def rate_share(train: CodecTrainConfig, step: int, progress: float) -> float:
    """Share of the peak learning rate: linear warm-up, a plateau to `decay_from`, then a cosine to zero at progress 1."""
    warm = min(1.0, (step + 1) / (train.warmup_steps + 1))
    late = min(1.0, max(0.0, (progress - train.decay_from) / max(1e-9, 1 - train.decay_from)))
    return warm * 0.5 * (1 + math.cos(math.pi * late))


class CodecTraining:
    """A training that can stop and go on: `run()` trains until the schedule, or this call's time, is over.

    With a `group` of several processes each of them draws its own clips, and process 0 writes.
    """

    def __init__(
        self, config: CodecConfig, device: torch.device, *, group: Group = ALONE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config, self.device, self.group, self.clock = config, device, group, clock
        self.output = Path(config.output_dir)
        self.step, self.seconds = 0, 0.0
        self.run_id: str | None = None
        if config.train.cuda_graph and group.size > 1:
            raise UserError("train.cuda_graph is for one process", seen=f"{group.size} of them", remedy="set train.cuda_graph=false")
        torch.manual_seed(config.train.seed + group.rank)
        if device.type == "cuda":  # mel filters and code search in TF32: training only
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        data = PackedRecordings(config.data, config.data.segment_frames * config.model.hop, device)
        self.work = CodecStep(config, data, device, group)
        if (self.output / "state.pt").exists():
            self._load()
        else:
            source = config.train.init_from
            self.work.initialize(None if source is None else load_codec(None if source == "shipped" else source))

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end of the schedule, by steps or by time, whichever is further."""
        train = self.config.train
        by_time = self.seconds / 60 / train.max_minutes if train.max_minutes else 0.0
        return min(1.0, max(self.step / train.max_steps, by_time))

    def run(
        self,
        *,
        max_seconds: float | None = None,
        report: Callable[[float, str], None] = lambda done, text: None,
        record: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    ) -> float:
        """Trains until progress is 1 or `max_seconds` of this call are over, saves, and returns the progress.

        At every log line process 0 calls `report(progress, text)` and `record(step, figures)`. Raises UserError when a loss is no
        longer finite.
        """
        train = self.config.train
        begun, before, saved, revived = self.clock(), self.seconds, self.seconds, torch.zeros((), device=self.device)
        while self.progress < 1 and (max_seconds is None or self.seconds - before < max_seconds):
            progress = self.progress
            self.work.set_schedule(rate_share(train, self.step, progress), progress)
            self.work.run(discriminate=progress >= train.discriminate_from)
            self.step += 1
            if self.step % train.revive_every == 0 and not train.decoder_only and progress < train.revive_until:
                self.work.synchronize()
                revived += self.work.codec.quantizer.revive(train.revive_below)
            if self.step % train.log_every == 0:
                figures = self._figures(progress, revived)
                if self.group.rank == 0:
                    self._write(figures)
                    record(self.step, figures)
                    report(self.progress, f"step {self.step} " + " ".join(f"{name} {figures[name]:.3f}" for name in SHOWN))
            self.seconds = self._agreed(before + self.clock() - begun)
            if self.seconds - saved > train.save_every_minutes * 60:
                self.save()
                saved = self.seconds
        self.save()
        return self.progress

    def _agreed(self, seconds: float) -> float:
        """Process 0's clock, so that all of them stop and save at the same step."""
        if self.group.size == 1:
            return seconds
        value = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        self.group.copy_first([value])
        return float(value)

    def _figures(self, progress: float, revived: torch.Tensor) -> dict[str, float]:
        """Losses since the start of this step, and how many codes each level uses; the only place that waits for the device."""
        values = dict(zip(STATISTICS, self.work.statistics.tolist()))
        if not all(math.isfinite(value) for value in values.values()):
            raise UserError(
                "codec training diverged: a loss is not finite", seen=values, remedy="lower train.lr, or resume from the last save"
            )
        used = [float((level.usage > 0.1).float().mean()) for level in self.work.codec.quantizer.levels]
        line = {"seconds": round(self.seconds, 1), "progress": round(progress, 4)} | {name: round(x, 5) for name, x in values.items()}
        line |= {f"used_{index + 1}": round(share, 3) for index, share in enumerate(used)} | {"least_used": round(min(used), 3)}
        line["revived"] = int(revived)
        revived.zero_()
        return line

    def _write(self, figures: dict[str, float]) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step} | figures) + "\n")

    def save(self) -> None:
        """Publishes the state for a restart, and the weights to use."""
        work = self.work.state()
        if self.group.rank != 0:
            return
        state = {"step": self.step, "seconds": self.seconds, "run_id": self.run_id, "config": self.config.model_dump_json(), "work": work}
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
        self.step, self.seconds, self.run_id = state["step"], state["seconds"], state["run_id"]
        self.work.load_state(state["work"])
        log.info("resumed at step %d after %.1f minutes", self.step, self.seconds / 60)
