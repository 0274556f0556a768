"""What a user gives (words, recordings) -> the views that a task's conditions name.

Owns which input feeds which condition; the tokenizers are those that made the training shards, so that codes mean the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.configs.farm import TokenizerConfig
from uniaudio.configs.tasks import SegmentConfig, TaskConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import BadAudio, load_audio
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, Tokenizer, make_tokenizer

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Inputs:
    """What the user gave. text: words to speak, or the description of a sound. instruction: how to speak, or what to change.

    source: the recording to convert, clean or edit. prompt: a recording of the speaker to imitate.
    """

    text: str | None = None
    instruction: str | None = None
    language: str | None = None
    source: Path | None = None
    prompt: Path | None = None


def make_tokenizers(recorded: Mapping[str, Mapping[str, Any]], task: TaskConfig) -> dict[str, Tokenizer]:
    """The tokenizers that the task needs, by base view; `audio` always, to decode.

    `recorded`: view -> `name`, `options`, `version` as the checkpoint keeps them.

    Raises:
        UserError: the shards had no such view, or today's tokenizer gives other codes than the one that made them.
    """
    views = {"audio"} | {view.split(".")[0] for view in task.required_views}
    lacking = sorted(view for view in views if view not in recorded)
    if lacking:
        raise UserError(f"task {task.name}: its shards have no such view", seen=", ".join(lacking), allowed=", ".join(recorded))
    return {view: _make(view, recorded[view]) for view in sorted(views)}


def _make(view: str, recorded: Mapping[str, Any]) -> Tokenizer:
    config = TokenizerConfig(name=recorded["name"], options=recorded["options"])
    tokenizer = make_tokenizer(config.name, config.options)
    version = f"{tokenizer.name}/{tokenizer.version}"
    if version != recorded["version"]:
        raise UserError(
            f"the tokenizer of view {view} is not the one that the model was trained on",
            seen=version,
            allowed=recorded["version"],
            remedy="use the tokenizer that made the shards, or tokenize and train again",
        )
    return tokenizer


def read_views(task: TaskConfig, inputs: Inputs, tokenizers: Mapping[str, Tokenizer], *, prompt_seconds: float) -> dict[str, np.ndarray]:
    """The arrays of the task's conditions by segment key (`SegmentConfig.key`).

    Raises:
        UserError: an input that the task needs is missing, empty, unreadable, or gives nothing to condition on.
    """
    return {segment.key: _read(task, segment, inputs, tokenizers, prompt_seconds) for segment in task.conditions}


def _read(
    task: TaskConfig, segment: SegmentConfig, inputs: Inputs, tokenizers: Mapping[str, Tokenizer], prompt_seconds: float
) -> np.ndarray:
    base = segment.view.split(".")[0]
    if segment.durations == "keep" or segment.draw == "masked":
        raise UserError(f"task {task.name} needs aligned phonemes, which `generate` cannot make yet", seen=segment.view)
    if segment.draw == "same_speaker":
        clip = _clip(task, "prompt", inputs.prompt, inputs, seconds=prompt_seconds)
    elif base in ("phone", "text"):
        words = inputs.instruction if base == "text" and inputs.instruction else inputs.text
        clip = _words(task, base, words, inputs)
    else:
        clip = _clip(task, "source", inputs.source, inputs)
    view = tokenizers[base].encode([clip])[0]
    if view is None or len(view) == 0:
        raise UserError(f"task {task.name}: nothing to condition on in view {segment.view}", seen=clip.row.text or clip.row.audio_filepath)
    return view


def _words(task: TaskConfig, view: str, words: str | None, inputs: Inputs) -> Clip:
    if words is None or not words.strip():
        raise UserError(f"task {task.name} needs words", seen=repr(words), remedy='--text "..."')
    kind = "speech" if view == "phone" else "sound"
    row = ManifestRow(id="input", audio_filepath="-", kind=kind, text=words, caption=words, language=inputs.language)
    return Clip(row=row, samples=np.zeros(0, np.float32))


def _clip(task: TaskConfig, option: str, path: Path | None, inputs: Inputs, *, seconds: float | None = None) -> Clip:
    if path is None:
        raise UserError(f"task {task.name} needs a recording", seen="none", remedy=f"--{option} FILE.wav")
    try:
        samples = load_audio(path)
    except BadAudio as error:
        raise UserError(f"--{option}: cannot use the recording ({error.reason})", seen=error.detail, remedy="give another file") from error
    if seconds is not None:
        samples = samples[: int(seconds * SAMPLE_RATE)]
    return Clip(row=ManifestRow(id="input", audio_filepath=str(path), kind="speech", language=inputs.language), samples=samples)
