"""A clip's views <-> the frames of a document: `<start> <TASK_task> <a_start> a... <a_end> ... <audio_start> target... <audio_end> <end>`.

Owns what stands in each frame, and the way back. Reads no shard, draws nothing: prompts are already cropped, masks already set (`MASKED`).
Views are raw codes as in the shard (`tokenize_farm.schema.VIEWS`), named by segment key (`SegmentConfig.key`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from uniaudio.configs.tasks import CONTINUOUS, SegmentConfig, TaskConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.tasks import GLOBAL_FRAMES, SEGMENT_FRAMES, document_frames, segment_frames
from uniaudio.pretrain.data.vocabulary import Vocabulary

MASKED = np.iinfo(np.uint16).max  # a hidden code in a view of raw codes
LossOn = Literal["target", "all"]
Named = str | Callable[[], str]  # a clip's name in messages, or what makes it


@dataclass(frozen=True)
class Sequence:
    """A document as vocabulary ids. L frames, Q codebooks, S continuous positions, C text width.

    codes_LQ: int64. target_mask_LQ: int8, 1 where the loss counts the code. text_states: (S, C) float16. text_positions: (S,) int32,
    the frame of each state. prefix_length: frames before the first target code under prefix-LM, else 0.
    """

    codes_LQ: np.ndarray
    target_mask_LQ: np.ndarray
    text_states: np.ndarray
    text_positions: np.ndarray
    prefix_length: int


_NO_STATES, _NO_POSITIONS = np.zeros((0, 0), np.float16), np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Part:
    """A segment with its ids looked up.

    form: how its view becomes frames: text states; audio codes; audio codes with some MASKED; phones held over their durations; the first
    column; a vector. offsets: (Q,) for audio, else (1,): added to raw codes. entries: raw codes are below it.
    """

    segment: SegmentConfig
    key: str
    start: int
    stop: int
    form: Literal["states", "audio", "masked", "held", "first", "vector"]
    offsets: np.ndarray
    entries: int


def _make_part(segment: SegmentConfig, vocabulary: Vocabulary, num_codebooks: int) -> Part:
    edges = (vocabulary.special(segment.start), vocabulary.special(segment.end))
    if segment.modality == CONTINUOUS:
        return Part(segment, segment.key, *edges, "states", np.zeros(1, np.int64), 0)
    if segment.modality == "audio":
        levels = [vocabulary.audio_level(level) for level in range(num_codebooks)]
        offsets = np.array([level.start for level in levels], np.int64)
        return Part(segment, segment.key, *edges, "masked" if segment.draw == "masked" else "audio", offsets, len(levels[0]))
    span = vocabulary.modality(segment.modality)
    phones = segment.view.split(".")[0] == "phone"
    form: Literal["held", "first", "vector"] = "held" if segment.durations == "keep" else "first" if phones else "vector"
    return Part(segment, segment.key, *edges, form, np.array([span.start], np.int64), len(span))


def make_parts(task: TaskConfig, vocabulary: Vocabulary, num_codebooks: int) -> list[Part]:
    """The segments of a task with their ids; UserError where the vocabulary lacks one, or levels for `num_codebooks`."""
    if num_codebooks > vocabulary.num_audio_levels:
        raise UserError(
            "model.num_codebooks exceeds the audio levels of the vocabulary",
            seen=num_codebooks,
            allowed=f"1..{vocabulary.num_audio_levels}",
            remedy="load_vocabulary(name, num_codebooks)",
        )
    return [_make_part(segment, vocabulary, num_codebooks) for segment in task.segments]


class SequenceBuilder:
    """Builds and reverts the documents of one task under one vocabulary; ids are looked up once.

    `num_codebooks`: Q, codes of a frame. Audio views may have more levels (the first Q are taken), never fewer. Every other token fills
    a whole frame. `loss_on` target: the target's codes and the `<audio_end>` and `<end>` behind them; all: every frame of the document.
    A target that was cut short never counts its closing two frames: the model would learn to stop early.
    """

    def __init__(
        self, task: TaskConfig, vocabulary: Vocabulary, num_codebooks: int, *, loss_on: LossOn = "target", prefix_lm: bool = False
    ) -> None:
        self.task, self.vocabulary, self.num_codebooks, self.loss_on, self.prefix_lm = task, vocabulary, num_codebooks, loss_on, prefix_lm
        self._parts = make_parts(task, vocabulary, num_codebooks)
        self._head = np.array([[vocabulary.special("<start>")], [vocabulary.special(task.token)]], np.int64)
        self._end = vocabulary.special("<end>")
        self._continuous = vocabulary.special("<continuous_token>")

    def build(self, views: Mapping[str, np.ndarray], *, target_frames: int | None = None, clip: str = "clip") -> Sequence:
        """The document; `target_frames` cuts the target (and what follows it). UserError names `clip` and the view at fault."""
        frames = self.frames(views, target_frames, clip=clip)
        codes = np.empty((frames, self.num_codebooks), np.int64)
        mask = np.zeros((frames, self.num_codebooks), np.int8)
        states, positions, prefix = self.fill(views, codes, mask, target_frames=target_frames, clip=clip)
        return Sequence(codes, mask, states, positions, prefix)

    def frames(self, views: Mapping[str, np.ndarray], target_frames: int | None = None, *, clip: str = "clip") -> int:
        """L of the document that `build` makes."""
        rows = {part.key: _view(views, part, self.task, clip).shape[0] for part in self._parts}
        whole = rows[self.task.target.key]
        return document_frames(self.task, rows, whole if target_frames is None else min(whole, target_frames))

    def fill(
        self, views: Mapping[str, np.ndarray], codes_LQ: np.ndarray, mask_LQ: np.ndarray, *, target_frames: int | None, clip: str = "clip"
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Writes the document into `codes_LQ` (exactly its frames) and ones into the zeroed `mask_LQ`.

        Returns text states, text positions and the prefix length, as in Sequence.
        """
        part = self._parts[-1]
        rows = _view(views, part, self.task, clip).shape[0]
        target = rows if target_frames is None else min(rows, target_frames)
        states, positions, start = self._fill_conditions(views, codes_LQ, target, clip)
        end = start + target
        if end + 2 != codes_LQ.shape[0]:
            raise ValueError(f"{clip}: {end + 2} frames written into {codes_LQ.shape[0]}")
        self._write(part, views[part.key], codes_LQ[start:end], clip)
        codes_LQ[end] = part.stop
        codes_LQ[end + 1] = self._end
        counted_end = end + 2 if target == rows else end
        mask_LQ[0 if self.loss_on == "all" else start : counted_end] = 1
        return states, positions, start if self.prefix_lm else 0

    def prompt(self, views: Mapping[str, np.ndarray], *, clip: str = "clip") -> Sequence:
        """The document up to its target's start token, for generation; no target is needed and nothing is counted by the loss."""
        lengths = []
        for part in self._parts[:-1]:
            view = _view(views, part, self.task, clip)
            rows = view.shape[0]
            lengths.append(int(_durations(view, clip).sum()) if part.form == "held" else segment_frames(part.segment, rows, rows))
        codes = np.empty((GLOBAL_FRAMES + SEGMENT_FRAMES * len(lengths) + sum(lengths), self.num_codebooks), np.int64)
        states, positions, end = self._fill_conditions(views, codes, 0, clip, lengths)
        return Sequence(codes, np.zeros(codes.shape, np.int8), states, positions, end if self.prefix_lm else 0)

    def _fill_conditions(
        self, views: Mapping[str, np.ndarray], codes_LQ: np.ndarray, target: int, clip: str, lengths: list[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Writes everything before the target's codes; returns text states, their positions, and the frame where the target begins."""
        codes_LQ[:2] = self._head
        end = 2
        states, positions = [], []
        for index, part in enumerate(self._parts[:-1]):
            view = _view(views, part, self.task, clip)
            count = lengths[index] if lengths else segment_frames(part.segment, view.shape[0], target)
            start, end = end + 1, end + 1 + count
            codes_LQ[start - 1] = part.start
            codes_LQ[end] = part.stop
            if part.form == "states":
                codes_LQ[start:end] = self._continuous
                states.append(view[:count])
                positions.append(np.arange(start, end, dtype=np.int32))
            else:
                self._write(part, view, codes_LQ[start:end], clip)
            end += 1
        codes_LQ[end] = self._parts[-1].start
        if not states:
            return _NO_STATES, _NO_POSITIONS, end + 1
        return np.concatenate(states), np.concatenate(positions), end + 1

    def _write(self, part: Part, view: np.ndarray, out_LQ: np.ndarray, clip: str) -> None:
        """Writes the ids of a segment's first L rows; refuses codes outside their codebook."""
        count = out_LQ.shape[0]
        if part.form in ("audio", "masked"):
            if view.shape[1] < self.num_codebooks:
                raise UserError(
                    f"{clip}: view {part.segment.view} has fewer levels than model.num_codebooks",
                    seen=view.shape[1],
                    allowed=f"at least {self.num_codebooks}",
                    remedy="tokenize with more levels, or train with fewer codebooks",
                )
            codes = view[:count, : self.num_codebooks]
        elif part.form == "held":
            codes = hold(view, count, clip)[:, None]
        else:
            codes = view[:count, :1] if part.form == "first" else view[:count, None]
        hidden = codes == MASKED if part.form == "masked" else None
        check_range(codes if hidden is None else codes[~hidden], part, clip)
        np.add(codes, part.offsets, out=out_LQ)
        if hidden is not None:
            out_LQ[hidden] = self.vocabulary.audio_mask

    def revert(self, sequence: Sequence) -> dict[str, np.ndarray]:
        """The views that `build` makes this sequence from, by segment key, as raw codes.

        Phones whose durations were collapsed come back with duration 0 (unknown); kept durations of equal phones side by side come back
        added up.
        """
        codes = sequence.codes_LQ
        self._expect(codes, 0, int(self._head[0, 0]))
        self._expect(codes, 1, int(self._head[1, 0]))
        end, taken = 2, 0
        views: dict[str, np.ndarray] = {}
        for part in self._parts:
            self._expect(codes, end, part.start)
            found = np.flatnonzero(codes[end + 1 :, 0] == part.stop)
            if found.size == 0:
                raise UserError(f"not a sequence of task {self.task.name}: no {part.segment.end} behind frame {end}")
            inside = codes[end + 1 : end + 1 + int(found[0])]
            if part.form == "states":
                views[part.key] = sequence.text_states[taken : taken + len(inside)]
                taken += len(inside)
            else:
                views[part.key] = self._raw(part, inside)
            end += len(inside) + 2
        self._expect(codes, end, self._end)
        return views

    def _raw(self, part: Part, ids_LQ: np.ndarray) -> np.ndarray:
        """The inverse of `_write`."""
        if part.form in ("audio", "masked"):
            return np.where(ids_LQ == self.vocabulary.audio_mask, MASKED, ids_LQ - part.offsets).astype(np.uint16)
        tokens = (ids_LQ[:, 0] - part.offsets[0]).astype(np.uint16)
        if part.form == "first":
            return np.stack([tokens, np.zeros_like(tokens)], axis=1)
        if part.form == "held":
            starts = np.flatnonzero(np.diff(tokens, prepend=np.uint16(MASKED)) != 0)
            return np.stack([tokens[starts], np.diff(starts, append=len(tokens)).astype(np.uint16)], axis=1)
        return tokens

    def _expect(self, codes: np.ndarray, frame: int, token: int) -> None:
        seen = codes[frame].tolist() if frame < len(codes) else None
        if seen != [token] * self.num_codebooks:
            names = "the end" if seen is None else " ".join(self.vocabulary.token_name(code) for code in seen)
            raise UserError(
                f"not a sequence of task {self.task.name}: frame {frame}", seen=names, allowed=self.vocabulary.token_name(token)
            )


def build_sequence(
    task: TaskConfig,
    views: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    num_codebooks: int,
    *,
    loss_on: LossOn = "target",
    prefix_lm: bool = False,
    target_frames: int | None = None,
) -> Sequence:
    """One document (see SequenceBuilder, which is quicker for many)."""
    return SequenceBuilder(task, vocabulary, num_codebooks, loss_on=loss_on, prefix_lm=prefix_lm).build(views, target_frames=target_frames)


def revert_sequence(task: TaskConfig, sequence: Sequence, vocabulary: Vocabulary, num_codebooks: int) -> dict[str, np.ndarray]:
    """The inverse of `build_sequence`: views by segment key."""
    return SequenceBuilder(task, vocabulary, num_codebooks).revert(sequence)


def build_prompt_sequence(
    task: TaskConfig, views: Mapping[str, np.ndarray], vocabulary: Vocabulary, num_codebooks: int, *, prefix_lm: bool = False
) -> Sequence:
    """The conditions up to and with the target's start token: what generation continues."""
    return SequenceBuilder(task, vocabulary, num_codebooks, prefix_lm=prefix_lm).prompt(views)


def _view(views: Mapping[str, np.ndarray], part: Part, task: TaskConfig, clip: str) -> np.ndarray:
    if part.key not in views:
        raise UserError(
            f"{clip}: task {task.name} needs {part.key}", seen=", ".join(views), allowed=", ".join(s.key for s in task.segments)
        )
    return views[part.key]


def _name(clip: Named) -> str:
    return clip if isinstance(clip, str) else clip()


def _durations(phones: np.ndarray, clip: Named) -> np.ndarray:
    durations = phones[:, 1]
    if not durations.any():
        raise UserError(
            f"{_name(clip)}: its phones have no durations",
            remedy="tokenize with a phone tokenizer that aligns, or leave out the tasks svs and s_edit",
        )
    return durations


def hold(phones: np.ndarray, count: int, clip: Named) -> np.ndarray:
    """Each phone of (P, 2) repeated over its frames, fitted to `count`: cut, or the last held on. UserError where none has a duration."""
    frames = np.repeat(phones[:, 0], _durations(phones, clip))[:count]
    return np.pad(frames, (0, count - len(frames)), mode="edge") if len(frames) < count else frames


def check_range(codes: np.ndarray, part: Part, clip: Named) -> None:
    """Raises UserError that names the clip and the view where a raw code lies outside its modality."""
    if codes.size and codes.max() >= part.entries:
        raise UserError(
            f"{_name(clip)}: a code of view {part.segment.view} lies outside {part.segment.modality}",
            seen=int(codes.max()),
            allowed=f"0..{part.entries - 1}",
            remedy="the shard was made by another tokenizer than model.vocabulary describes",
        )
