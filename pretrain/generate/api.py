"""Generation for Python: a checkpoint, loaded once -> clips, streams of samples, batches.

    generator = Generator.load("runs/mine", precision="bf16")
    clip = generator.generate("tts", Inputs(text="good morning", prompt=Path("speaker.wav")))
    for samples in generator.stream("tts", inputs): play(samples)
    for number, clip in generator.batch([("tts", inputs, Options()), ...]): ...

Owns the way from inputs to samples; the frame loop is `slots.py`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from uniaudio.configs.run import RunConfig
from uniaudio.configs.tasks import TaskConfig, load_task
from uniaudio.errors import UserError
from uniaudio.pretrain import checkpoint
from uniaudio.pretrain.data.sequence import build_prompt_sequence
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.generate.free import free_document
from uniaudio.pretrain.generate.inputs import Inputs, Views, input_names, make_tokenizers, read_views, require_used
from uniaudio.pretrain.generate.rank import COMPARES_WITH, Rank, Ranker, require_comparable
from uniaudio.pretrain.generate.request import FRAME_RATE, Generated, Request
from uniaudio.pretrain.generate.slots import Slots, decode_weights
from uniaudio.pretrain.generate.stream import WaveStream
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.sampling import Sampling, candidate_seed
from uniaudio.tokenize_farm.tokenizers.protocol import Tokenizer
from uniaudio.tokenize_farm.tokenizers.resources import pick_device

Precision = Literal["fp32", "bf16", "fp16", "int8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CACHE_STEP = 256  # caches grow by this many frames
DEFAULT_SECONDS = (0.2, 20.0)


@dataclass(frozen=True)
class Options:
    """How to generate one clip.

    min_seconds, max_seconds: of a task whose target follows its source, the source's length unless given; else 0.2 and 20.
    candidates: that many are drawn, and the best by `rank` is given: the model's own score, the characters that a recogniser gets wrong, or
    the likeness of the voice to the prompt's.
    """

    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    min_seconds: float | None = None
    max_seconds: float | None = None
    candidates: int = 1
    rank: Rank = "score"

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise UserError("candidates", seen=self.candidates, allowed=">= 1")
        for name, seconds in (("min_seconds", self.min_seconds), ("max_seconds", self.max_seconds)):
            if seconds is not None and not 1 / FRAME_RATE <= seconds < math.inf:
                raise UserError(name, seen=seconds, allowed=f"{1 / FRAME_RATE} or more")


@dataclass(frozen=True)
class Clip:
    """A generated clip. samples (S,) float32 at 16 kHz, codes_TQ uint16. stopped, score: as in Generated. seed: that made it."""

    task: str
    samples: np.ndarray
    codes_TQ: np.ndarray
    stopped: bool
    score: float
    seed: int


Job = tuple[str, Inputs, Options]


class Generator:
    """A model with its tokenizers, and slots that are made when they are needed and kept."""

    def __init__(
        self,
        model: MultiScaleTransformer,
        run: RunConfig,
        vocabulary: Vocabulary,
        tokenizers: Mapping[str, Mapping[str, Any]],
        *,
        int8: bool = False,
        rows: int = 8,
    ) -> None:
        self.run, self.vocabulary, self.rows = run, vocabulary, rows
        self._recorded = tokenizers
        self._weights = decode_weights(model, vocabulary, int8=int8)
        self._made: dict[str, dict[str, Tokenizer]] = {}
        self._slots: Slots | None = None
        self._ranker = Ranker()

    @classmethod
    def load(cls, path: Path | str, *, device: str = "auto", precision: Precision = "fp32", rows: int = 8) -> "Generator":
        """From an export folder, a checkpoint, or a run's newest one. rows: sequences side by side in `batch`.

        Raises:
            UserError: no whole checkpoint there, or a device that this machine lacks.
        """
        place = pick_device(device)
        dtype = DTYPES.get(precision, torch.bfloat16 if place.type == "cuda" else torch.float32)
        model, run, vocabulary = checkpoint.load_model(Path(path), place, dtype)
        return cls(model, run, vocabulary, checkpoint.read_tokenizers(Path(path)), int8=precision == "int8", rows=rows)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the model was trained on."""
        return tuple(self._tasks)

    @cached_property
    def _tasks(self) -> dict[str, TaskConfig]:
        return {task.name: task for task in map(load_task, self.run.data.tasks)}

    def uses(self, rank: Rank) -> dict[str, tuple[str, ...]]:
        """Task -> the fields of `Inputs` that it takes, those that `rank` compares with among them; of the tasks that make audio."""
        audible = [task for task in self._tasks.values() if task.target.modality == "audio"]
        return {task.name: (*input_names(task), *COMPARES_WITH[rank]) for task in audible}

    def task(self, name: str) -> TaskConfig:
        """The task of that name; UserError where the checkpoint does not know it, or makes something else than audio."""
        if name not in self._tasks:
            raise UserError("the checkpoint does not know this task", seen=name, allowed=", ".join(self._tasks))
        if (modality := self._tasks[name].target.modality) != "audio":
            raise UserError(f"task {name} makes no audio", seen=modality, allowed="audio")
        return self._tasks[name]

    def generate(self, task: str, inputs: Inputs, options: Options | None = None, *, progress: Callable[[int], None] | None = None) -> Clip:
        """One clip; `progress` hears how many frames its sequences have.

        Raises:
            UserError: inputs that the task cannot use, or that do not fit the model.
        """
        [(_, clip)] = self.batch([(task, inputs, options or Options())], progress=progress)
        return clip

    def batch(
        self, jobs: Iterable[Job], *, progress: Callable[[int], None] | None = None, failed: Callable[[int, UserError], None] | None = None
    ) -> Iterator[tuple[int, Clip]]:
        """(number of the job, its clip) as they end; `rows` sequences run side by side. A job is prepared when a row is free for it.

        `failed` hears of a job that cannot be done, and the others go on; without it the first such UserError ends the batch.
        """
        places: list[tuple[int, Job, Request]] = []
        waiting: dict[int, list[tuple[Request, Generated]]] = {}

        def requests() -> Iterator[Request]:
            for number, job in enumerate(jobs):
                try:
                    made = self.requests(*job)
                except UserError as error:
                    if failed is None:
                        raise
                    failed(number, error)
                    continue
                for request in made:
                    places.append((number, job, request))
                    yield request

        frames: dict[int, int] = {}
        for piece in self._ready().run(requests(), partial=progress is not None):
            number, (task, inputs, options), request = places[piece.index]
            frames[piece.index] = frames.get(piece.index, 0) + len(piece.codes_TQ)
            if progress is not None:
                progress(max(frames.values()))
            if piece.whole is None:
                continue
            waiting.setdefault(number, []).append((request, piece.whole))
            if len(waiting[number]) == options.candidates:
                yield number, self._best(task, inputs, options, waiting.pop(number))

    def stream(self, task: str, inputs: Inputs, options: Options | None = None) -> Iterator[np.ndarray]:
        """Samples as soon as they are certain; joined they are those of `generate`. One candidate."""
        [request] = self.requests(task, inputs, replace(options or Options(), candidates=1))
        wave = WaveStream(self._tokenizers(task)["audio"])
        for piece in self._ready().run([request], partial=True):
            for samples in (wave.push(piece.codes_TQ), wave.finish() if piece.whole is not None else None):
                if samples is not None and len(samples):
                    yield samples

    def requests(self, task: str, inputs: Inputs, options: Options) -> list[Request]:
        """What goes into the frame loop: one request a candidate."""
        config, model = self.task(task), self.run.model
        require_used(inputs, self.uses(options.rank), [task])
        if options.candidates > 1:
            require_comparable(options.rank, inputs)
        views = read_views(
            config, inputs, self._tokenizers(task), prompt_seconds=self.run.data.prompt_seconds, positions=model.max_positions
        )
        document = build_prompt_sequence(config, views, self.vocabulary, model.num_codebooks, prefix_lm=model.prefix_lm)
        room = model.max_positions - document.codes_LQ.shape[0] - 1
        low, high = frame_limits(config, views, options, room)
        free = free_document(config, self.vocabulary, model.num_codebooks, prefix_lm=model.prefix_lm)
        seeds = [candidate_seed(options.seed, number) for number in range(options.candidates)]
        return [Request(document, options.sampling, seed, low, high, free) for seed in seeds]

    def _tokenizers(self, task: str) -> dict[str, Tokenizer]:
        if task not in self._made:
            made = {view: one for tokenizers in self._made.values() for view, one in tokenizers.items()}
            self._made[task] = make_tokenizers(self._recorded, self.task(task))
            self._made[task] |= {view: made[view] for view in self._made[task] if view in made}  # models are loaded once
        return self._made[task]

    def _ready(self) -> Slots:
        if self._slots is None:
            self._slots = Slots(self._weights, self.vocabulary, rows=self.rows, max_frames=self.run.model.max_positions)
        return self._slots

    def _best(self, task: str, inputs: Inputs, options: Options, found: list[tuple[Request, Generated]]) -> Clip:
        tokenizer = self._tokenizers(task)["audio"]
        clips = []
        for request, made in sorted(found, key=lambda pair: options.seed != pair[0].seed):  # the first candidate first
            samples = tokenizer.decode(made.codes_TQ) if len(made.codes_TQ) else np.zeros(0, np.float32)  # type: ignore[attr-defined]
            clips.append(Clip(task, samples, made.codes_TQ, made.stopped, made.score, request.seed))
        if len(clips) == 1:
            return clips[0]
        return self._ranker.best(clips, options.rank, inputs)


def frame_limits(task: TaskConfig, views: Views, options: Options, room: int) -> tuple[int, int]:
    """Fewest and most frames to generate. room: frames that the model's positions leave.

    Raises:
        UserError: nothing fits.
    """
    followers = [segment for segment in task.conditions if segment.follows_target]
    if followers:
        view = views[followers[0].key]
        frames = int(view[:, 1].sum()) if followers[0].durations == "keep" else len(view)
        low, high = frames, frames
    else:
        low, high = (round(seconds * FRAME_RATE) for seconds in DEFAULT_SECONDS)
        high = min(high, max(room, 0))
    if options.max_seconds is not None:
        high = round(options.max_seconds * FRAME_RATE)
        low = min(low, high)
    if options.min_seconds is not None:
        low = round(options.min_seconds * FRAME_RATE)
        if options.max_seconds is None:
            high = max(low, high)
    if room < max(low, 1):
        raise UserError(
            "the conditions leave no room for the audio in the model's positions",
            seen=f"{max(low, 1)} frames at least",
            allowed=f"{max(room, 0)}",
            remedy="fewer words, or shorter recordings",
        )
    return max(low, 1), max(high, 1)
