"""What a user gives (words, phonemes, recordings, times, notes) -> the views that a task's conditions name.

Owns which input feeds which condition and what is wrong with an input; the tokenizers are those that made the training shards, so that
codes mean the same. Speech editing puts its views together in `edit.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.configs.farm import TokenizerConfig
from uniaudio.configs.tasks import CONTINUOUS, SegmentConfig, TaskConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.generate.edit import edited_views
from uniaudio.pretrain.generate.request import FRAME_RATE
from uniaudio.pretrain.generate.score import sung_views
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, BadAudio, audio_seconds, load_audio
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.schema import UNKNOWN_PHONE
from uniaudio.tokenize_farm.tokenizers.espeak import knows_language
from uniaudio.tokenize_farm.tokenizers.phones import inventory
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, Tokenizer, make_tokenizer

MAX_PROMPT_SECONDS = 60.0  # a longer one is a mistake: only its first seconds are used
Views = dict[str, np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """What the user gave; a task refuses what it does not use.

    text: words to speak or to sing, those that a recording to edit holds, or the description of a sound. phones: what to speak, as names
    of the inventory with spaces between, instead of text. instruction: how to speak, or what to change in a sound. source: the recording
    to convert, clean, edit or sing after. prompt: a recording of the speaker to imitate. alignment: TextGrid or CTM with the times of the
    words in `source`; an aligner finds them unless given. midi: a MIDI file with the notes to sing; those of `source` unless given.
    replace: `old words=new words` of a recording to edit.
    """

    text: str | None = None
    phones: str | None = None
    instruction: str | None = None
    language: str | None = None
    source: Path | None = None
    prompt: Path | None = None
    alignment: Path | None = None
    midi: Path | None = None
    replace: str | None = None


def input_names(task: TaskConfig) -> tuple[str, ...]:
    """The fields of `Inputs` that the task uses, in the order of the class; `alignment` and `midi` may be left out."""
    used: set[str] = set()
    for segment in task.conditions:
        if segment.draw == "same_speaker":
            used.add("prompt")
        elif segment.modality == CONTINUOUS:
            used.add("instruction" if segment.view.endswith(".instruction") else "text")
        elif segment.view == "phone":
            used |= {"text", "phones"}
        else:
            used.add("source")
        if segment.durations == "keep":
            used |= {"text", "alignment"}
        if segment.draw == "masked":
            used.add("replace")
        if segment.view.split(".")[0] == "midi":
            used.add("midi")
    if {"phones", "alignment"} & used:
        used.add("language")
    return tuple(field.name for field in fields(Inputs) if field.name in used)


def require_used(inputs: Inputs, uses: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> None:
    """UserError for an input that none of `tasks` takes. uses: task -> the fields that it takes, of every task there is.

    A language may be given to every task, since the command line has one by default.
    """
    for field in fields(Inputs):
        value, takers = getattr(inputs, field.name), [task for task, names in uses.items() if field.name in names]
        if value is not None and field.name != "language" and not set(takers) & set(tasks):
            raise UserError(
                f"--{field.name} is of no use to task {', '.join(tasks)}",
                seen=value,
                allowed=f"with task {', '.join(takers)}" if takers else "with no task of this checkpoint",
                remedy="leave it out, or another task",
            )


def make_tokenizers(recorded: Mapping[str, Mapping[str, Any]], task: TaskConfig) -> dict[str, Tokenizer]:
    """The tokenizers that the task needs, by view; `audio` always, to decode.

    `recorded`: view -> `name`, `options`, `version` as the checkpoint keeps them. A variant (`audio.noisy`) without a tokenizer of its own
    takes that of its base view.

    Raises:
        UserError: the shards had no such view, or today's tokenizer gives other codes than the one that made them.
    """
    views = {view if view in recorded else view.split(".")[0] for view in (*task.required_views, "audio")}
    if "phone.aligned" in views:
        views |= {"phone"} & set(recorded)  # speech editing spells the new words
    lacking = sorted(view for view in views if view not in recorded)
    if lacking:
        raise UserError(f"task {task.name}: its shards have no such view", seen=", ".join(lacking), allowed=", ".join(recorded) or "none")
    return {view: _make(view, recorded[view]) for view in sorted(views)}


def make_codec(recorded: Mapping[str, Mapping[str, Any]]) -> Tokenizer:
    """The tokenizer of `audio` alone, to decode: what a host needs that has all codes (`make_tokenizers` says what it raises)."""
    if "audio" not in recorded:
        raise UserError("the shards have no such view", seen="audio", allowed=", ".join(recorded) or "none")
    return _make("audio", recorded["audio"])


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


def read_views(task: TaskConfig, inputs: Inputs, tokenizers: Mapping[str, Tokenizer], *, prompt_seconds: float, positions: int) -> Views:
    """The arrays of the task's conditions by segment key (`SegmentConfig.key`). positions: frames that the model knows.

    Raises:
        UserError: an input that the task needs is missing, empty, unreadable, too long, or gives nothing to condition on.
    """
    reader = _Reader(task, inputs, tokenizers, prompt_seconds, positions)
    views: Views = {}
    if any(segment.draw == "masked" for segment in task.conditions):
        views |= edited_views(task, inputs.text, inputs.replace, reader.source, tokenizers)
    keys = {segment.key for segment in task.conditions}
    if "midi" in keys and inputs.midi is not None and inputs.source is None:
        sung = sung_views(reader.words(inputs.text, "text"), inputs.language, inputs.midi, tokenizers)
        views |= {key: view for key, view in sung.items() if key in keys}
    for segment in task.conditions:
        if segment.key not in views:
            views[segment.key] = reader.read(segment)
    return views


class _Reader:
    """The inputs of one request; recordings are read once."""

    def __init__(
        self, task: TaskConfig, inputs: Inputs, tokenizers: Mapping[str, Tokenizer], prompt_seconds: float, positions: int
    ) -> None:
        self._task, self._inputs, self._tokenizers = task, inputs, tokenizers
        self._prompt_seconds, self._most_seconds = prompt_seconds, positions / FRAME_RATE

    def read(self, segment: SegmentConfig) -> np.ndarray:
        """The view of one condition."""
        inputs = self._inputs
        if segment.draw == "same_speaker":
            return self._encode(segment.view, self._prompt())
        if segment.modality == CONTINUOUS:
            own = segment.view.endswith(".instruction")
            words = self.words(inputs.instruction if own else inputs.text, "instruction" if own else "text")
            return self._encode(segment.view, _spoken("sound", text=words, caption=words))
        if segment.view == "phone":
            return self._phones()
        if segment.durations == "keep" and self._inputs.alignment is None:
            self.words(self._inputs.text, "text")
        return self._encode(segment.view, self.source)

    @cached_property
    def source(self) -> Clip:
        """The recording to convert, clean, edit or sing after."""
        inputs, kind = self._inputs, self._task.kinds[0]
        samples = self._recording("source", inputs.source, self._most_seconds)
        known = {"alignment": str(inputs.alignment.absolute())} if inputs.alignment else {}
        midi = str(inputs.midi.absolute()) if inputs.midi else None
        row = ManifestRow(
            id="input", audio_filepath=str(inputs.source), kind=kind, text=inputs.text, language=inputs.language, midi=midi, custom=known
        )
        return Clip(row, samples)

    def _prompt(self) -> Clip:
        samples = self._recording("prompt", self._inputs.prompt, MAX_PROMPT_SECONDS)
        row = ManifestRow(id="input", audio_filepath=str(self._inputs.prompt), kind="speech", language=self._inputs.language)
        return Clip(row, samples[: int(self._prompt_seconds * SAMPLE_RATE)])

    def _recording(self, option: str, path: Path | None, most_seconds: float) -> np.ndarray:
        if path is None:
            notes = " or --midi FILE.mid" if option == "source" and "midi" in input_names(self._task) else ""
            raise UserError(f"task {self._task.name} needs a recording", seen="none", remedy=f"--{option} FILE.wav{notes}")
        try:
            seconds = audio_seconds(path)
            if seconds > most_seconds:
                remedy = f"cut it: its first {self._prompt_seconds:g} s are used" if option == "prompt" else "cut it into parts"
                raise UserError(f"--{option}: {path} is too long", seen=f"{seconds:.1f} s", allowed=f"{most_seconds:g} s", remedy=remedy)
            return load_audio(path)
        except BadAudio as error:
            raise UserError(
                f"--{option}: cannot use the recording ({error.reason})", seen=error.detail, remedy="give another file"
            ) from error

    def words(self, words: str | None, option: str) -> str:
        """The words given; UserError where there are none."""
        if words is None or not words.strip():
            raise UserError(f"task {self._task.name} needs words", seen=repr(words), remedy=f'--{option} "..."')
        return words

    def _phones(self) -> np.ndarray:
        """(P, 2) of the phonemes or the words given."""
        inputs = self._inputs
        if inputs.phones is not None:
            names = self.words(inputs.phones, "phones").split()
            unknown = [name for name in names if name not in inventory()]
            if unknown:
                raise UserError(
                    "unknown phonemes", seen=" ".join(unknown[:10]), allowed=" ".join(list(inventory())[:60]) + " ...",
                    remedy="names of tokenize_farm/tokenizers/data/phones.txt, or give --text",
                )  # fmt: skip
            return np.array([(inventory()[name], 0) for name in names], np.uint16)
        words = self.words(inputs.text, "text")
        if inputs.language and not knows_language(inputs.language):
            raise UserError("no phonemes in this language", seen=inputs.language, allowed="a language of espeak-ng: en, fr, de, cmn, ...")
        phones = self._encode("phone", _spoken("speech", text=words, language=inputs.language))
        if (phones[:, 0] == UNKNOWN_PHONE).any():
            raise UserError("words with sounds that have no phoneme", seen=words[:60], remedy="spell them otherwise, or check --language")
        return phones

    def _encode(self, view: str, clip: Clip) -> np.ndarray:
        tokenizer = self._tokenizers[view if view in self._tokenizers else view.split(".")[0]]
        made = tokenizer.encode([clip])[0]
        if made is None or len(made) == 0:
            seen = clip.row.text or clip.row.audio_filepath
            remedy = (
                "give --alignment FILE.TextGrid, or words that the recording holds" if view in ("phone.aligned", "phone.singing") else None
            )
            raise UserError(f"task {self._task.name}: nothing to condition on in view {view}", seen=seen[:80], remedy=remedy)
        return made


def _spoken(kind: str, **fields: str | None) -> Clip:
    return Clip(ManifestRow.model_validate({"id": "input", "audio_filepath": "-", "kind": kind, **fields}), np.zeros(0, np.float32))
