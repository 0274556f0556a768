"""From a checkpoint to figures: for each task its likelihood, and the sound of the model between a line above it and a line below.

Rows of a task: `model`; `input`, the noisy, mixed, reverberant or unedited sound that it was given, by its codes (what is no better has
not helped); `resynthesis`, the held-out clips as their own codes give them back (no model of these codes can be better); `shuffled`, the
model's clips held against the voices of others; `unigram`, codes drawn independently by how often each occurs (a model that is no better
has learned nothing).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.checkpoint import load_model, read_tokenizers
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.evaluation.held_out import HeldOut, HeldOutTask
from uniaudio.pretrain.evaluation.likelihood import Likelihood, likelihood
from uniaudio.pretrain.evaluation.scores import NO_MODELS, OF_RESYNTHESIS, Heard, Judge, Models, measures_of
from uniaudio.pretrain.evaluation.statistics import Interval
from uniaudio.pretrain.generate.inputs import make_codec
from uniaudio.pretrain.generate.request import FRAME_RATE, Request
from uniaudio.pretrain.generate.slots import Slots, decode_weights, require_frames
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.sampling import Sampling, candidate_seed

logger = get_logger("evaluate")
LONGEST = 2.0  # a generated clip is at most so many times as long as the held-out one


@dataclass(frozen=True)
class Plan:
    """What to evaluate. clips: generated a task (0: the likelihood alone). rows: of held-out frames for the likelihood. pass_over: tasks
    that no held-out clip serves are told and left out, instead of an error. generated: folder with the codes of an evaluation before, to be
    measured here instead of generating (`report.write_codes`)."""

    tasks: tuple[str, ...]
    clips: int = 16
    rows: int = 64
    measures: tuple[str, ...] | None = None
    seed: int = 0
    pass_over: bool = False
    generated: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class TaskResult:
    """Figures of a task: likelihood, measures by row, and what was generated: clip -> samples by row, and clip -> the model's codes."""

    task: str
    likelihood: Likelihood
    rows: Mapping[str, Mapping[str, Interval]]
    audio: Mapping[str, Mapping[str, np.ndarray]]
    codes: Mapping[str, np.ndarray]


class Evaluator:
    """A loaded model; `evaluate` gives the results task by task."""

    def __init__(
        self,
        model: MultiScaleTransformer,
        run: RunConfig,
        vocabulary: Vocabulary,
        tokenizers: Mapping[str, Mapping[str, Any]],
        models: Models = NO_MODELS,
    ) -> None:
        """tokenizers: view -> name, options, version, as a checkpoint keeps them."""
        self.model, self.run, self.vocabulary, self._recorded = model, run, vocabulary, tokenizers
        self._models, self._judge = models, Judge(models)
        self._slots: Slots | None = None

    @classmethod
    def load(
        cls, checkpoint: Path, *, shards: str | None, device: torch.device, dtype: torch.dtype, models: Models = NO_MODELS
    ) -> "Evaluator":
        """shards: held-out shards of another folder than the run's. Raises UserError where the checkpoint cannot be used."""
        model, run, vocabulary = load_model(checkpoint, device, dtype)
        if shards is not None:
            run = run.model_copy(update={"data": run.data.model_copy(update={"shards": shards})})
        return cls(model, run, vocabulary, read_tokenizers(checkpoint), models)

    def evaluate(self, plan: Plan, told: Callable[[str], None] = lambda what: None) -> Iterable[TaskResult]:
        """One result a task. `told` hears what is being done.

        Raises:
            UserError: no held-out clip serves a task (but for plan.pass_over), or a measure's model is not installed.
        """
        if plan.clips and plan.generated is None:
            require_frames(self.run.model)
        if plan.clips:
            told("loading the measures")
            needed = dict.fromkeys(of for name in plan.tasks for of in measures_of(name, plan.measures, self._models))
            self._judge.rehearse(list(needed))
        for name in plan.tasks:
            told(f"{name}: likelihood")
            try:
                held_out = HeldOutTask(self.run, self.vocabulary, name, rows=plan.rows)
            except UserError as error:
                if not plan.pass_over:
                    raise
                logger.warning("task %s is left out: %s", name, error)
                continue
            try:
                found = likelihood(self.model, held_out.batches, vocabulary_size=self.vocabulary.size)
                makes_audio = held_out.task.target.modality == "audio"
                documents = held_out.documents(plan.clips) if plan.clips and makes_audio else []
            finally:
                held_out.close()
            made = self._made(held_out, documents, plan, told) if documents else []
            rows, audio = self._sound(held_out, documents, made, plan, told) if documents else ({}, {})
            yield TaskResult(name, found, rows, audio, {document.clip: codes for document, codes in zip(documents, made)})

    def _made(self, held_out: HeldOutTask, documents: Sequence[HeldOut], plan: Plan, told: Callable[[str], None]) -> list[np.ndarray]:
        """The model's codes of each document, from here or from plan.generated."""
        name = held_out.task.name
        if plan.generated is None:
            told(f"{name}: generating {len(documents)} clips")
            return self._generate(held_out, documents, plan)
        path = plan.generated / f"{name}.npz"
        kept = dict(np.load(path)) if path.is_file() else {}
        if lacking := [document.clip for document in documents if document.clip not in kept]:
            raise UserError(
                f"--generated: no codes of task {name} for a held-out clip",
                seen=lacking[0],
                allowed=f"{len(kept)} clips in {path}",
                remedy="the same shards, tasks, --clips and --rows as where they were generated",
            )
        return [kept[document.clip] for document in documents]

    def _sound(
        self, held_out: HeldOutTask, documents: Sequence[HeldOut], made: list[np.ndarray], plan: Plan, told: Callable[[str], None]
    ) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, np.ndarray]]]:
        name = held_out.task.name
        measures = measures_of(name, plan.measures, self._models)
        codec = make_codec(self._recorded)
        given = next((part.key for part in held_out.task.conditions if part.modality == "audio" and part.draw == "own"), None)
        codes = {
            "model": made,
            **({"input": [document.views[given] for document in documents]} if given else {}),
            "resynthesis": [document.target_TQ for document in documents],
            "unigram": unigram_codes(documents, seed=plan.seed),
        }
        decoded = {
            row: [codec.decode(clip) if len(clip) else np.zeros(0, np.float32) for clip in clips]  # type: ignore[attr-defined]
            for row, clips in codes.items()
        }
        prompts = [
            codec.decode(document.views["prompt"]) if "prompt" in document.views else None  # type: ignore[attr-defined]
            for document in documents
        ]
        heard = {
            row: [
                Heard(made, reference, prompt, *(document.meta.get(key) for key in ("text", "language", "caption")))
                for made, reference, prompt, document in zip(clips, decoded["resynthesis"], prompts, documents)
            ]
            for row, clips in decoded.items()
        }
        rows = {}
        for row, clips in heard.items():
            told(f"{name}: measuring {row}")
            rows[row] = self._judge.judge([of for of in measures if row != "resynthesis" or of in OF_RESYNTHESIS], clips)
        others = other_voices([str(document.meta.get("speaker") or "") for document in documents])
        if "sim" in measures and others:
            strangers = [replace(heard["model"][clip], prompt=prompts[other]) for clip, other in others.items()]
            rows["shuffled"] = self._judge.judge(["sim"], strangers)
        audio = {document.clip: {row: decoded[row][i] for row in decoded} for i, document in enumerate(documents)}
        return rows, audio

    def _generate(self, held_out: HeldOutTask, documents: Sequence[HeldOut], plan: Plan) -> list[np.ndarray]:
        """Codes of each document's target as the model makes them; as long as its source where the task follows one."""
        follows = any(segment.follows_target for segment in held_out.task.conditions)
        if self._slots is None:
            weights = decode_weights(self.model, self.vocabulary)
            self._slots = Slots(weights, self.vocabulary, rows=min(8, len(documents)), max_frames=self.run.model.max_positions)
        requests = []
        for number, document in enumerate(documents):
            frames = len(document.target_TQ)
            room = self.run.model.max_positions - len(document.prompt.codes_LQ) - 1
            most = max(1, min(frames if follows else round(LONGEST * frames), room))
            least = most if follows else min(most, FRAME_RATE // 5)
            requests.append(Request(document.prompt, plan.sampling, candidate_seed(plan.seed, number), least, most))
        made: dict[int, np.ndarray] = {}
        for piece in self._slots.run(requests):
            if piece.whole is not None:
                made[piece.index] = piece.whole.codes_TQ
        return [made[number] for number in range(len(requests))]


def other_voices(speakers: Sequence[str]) -> dict[int, int]:
    """Document -> the next one of another speaker; empty where all are of one."""
    count = len(speakers)
    turns = {number: [(number + turn) % count for turn in range(1, count)] for number in range(count)}
    found = {number: next((other for other in turn if speakers[other] != speakers[number]), None) for number, turn in turns.items()}
    return {number: other for number, other in found.items() if other is not None}


def unigram_codes(documents: Sequence[HeldOut], *, seed: int) -> list[np.ndarray]:
    """For each document codes of its target's length, each level drawn by its frequencies in all these targets: what knows nothing."""
    rng = np.random.default_rng(seed)
    pool_NQ = np.concatenate([document.target_TQ for document in documents])
    made = []
    for document in documents:
        picks = rng.integers(0, len(pool_NQ), document.target_TQ.shape)
        made.append(np.take_along_axis(pool_NQ, picks, axis=0))
    return made
