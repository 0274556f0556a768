"""A clip's views <-> the frames of a document: `<start> <TASK_task> <a_start> a... <a_end> ... <audio_start> target... <audio_end> <end>`.

Owns what stands in each frame, and the way back. Reads no shard, draws nothing: prompts are already cropped, masks already set (`MASKED`).
Views are raw codes as in the shard (`tokenize_farm.schema.VIEWS`), named by segment key (`SegmentConfig.key`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from uniaudio.configs.tasks import CONTINUOUS, SegmentConfig, TaskConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.tasks import GLOBAL_FRAMES, SEGMENT_FRAMES, document_frames, segment_frames
from uniaudio.pretrain.data.vocabulary import Vocabulary

MASKED = np.iinfo(np.uint16).max  # a hidden code in a view of raw codes
LossOn = Literal["target", "all"]


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


class SequenceBuilder:
    """Builds and reverts the documents of one task under one vocabulary; ids are looked up once.

    `num_codebooks`: Q, codes of a frame. Audio views may have more levels (the first Q are taken), never fewer. Every other token fills
    a whole frame. `loss_on` target: the target's codes and the `<audio_end>` and `<end>` behind them; all: every frame of the document.
    A target that was cut short never counts its closing two frames: the model would learn to stop early.
    """

    def __init__(
        self, task: TaskConfig, vocabulary: Vocabulary, num_codebooks: int, *, loss_on: LossOn = "target", prefix_lm: bool = False
    ) -> None:
        if num_codebooks > vocabulary.num_audio_levels:
            raise UserError(
                "model.num_codebooks exceeds the audio levels of the vocabulary",
                seen=num_codebooks,
                allowed=f"1..{vocabulary.num_audio_levels}",
                remedy="load_vocabulary(name, num_codebooks)",
            )
        self.task, self.vocabulary, self.num_codebooks, self.loss_on, self.prefix_lm = task, vocabulary, num_codebooks, loss_on, prefix_lm
        levels = [vocabulary.audio_level(level) for level in range(num_codebooks)]
        self._audio_offsets = np.array([level.start for level in levels], np.int64)
        self._entries = {name: entries for name, _, entries, _ in vocabulary.ranges}
        self._offsets = {name: vocabulary.modality(name).start for name, *_ in vocabulary.ranges}
        self._edges = [(vocabulary.special(segment.start), vocabulary.special(segment.end)) for segment in task.segments]
        self._head = np.array([vocabulary.special("<start>"), vocabulary.special(task.token)], np.int64)
        self._end = vocabulary.special("<end>")
        self._continuous = vocabulary.special("<continuous_token>")
        for segment in task.segments:
            if segment.modality != CONTINUOUS:
                vocabulary.modality(segment.modality)

    def build(self, views: Mapping[str, np.ndarray], *, target_frames: int | None = None, clip: str = "clip") -> Sequence:
        """The document; `target_frames` cuts the target (and what follows it). UserError names `clip` and the view at fault."""
        frames = self.frames(views, target_frames, clip=clip)
        codes = np.empty((frames, self.num_codebooks), np.int64)
        mask = np.zeros((frames, self.num_codebooks), np.int8)
        states, positions, prefix = self.fill(views, codes, mask, target_frames=target_frames, clip=clip)
        return Sequence(codes, mask, states, positions, prefix)

    def frames(self, views: Mapping[str, np.ndarray], target_frames: int | None = None, *, clip: str = "clip") -> int:
        """L of the document that `build` makes."""
        rows = {segment.key: _view(views, segment, self.task, clip).shape[0] for segment in self.task.segments}
        return document_frames(self.task, rows, min(rows[self.task.target.key], target_frames or rows[self.task.target.key]))

    def fill(
        self, views: Mapping[str, np.ndarray], codes_LQ: np.ndarray, mask_LQ: np.ndarray, *, target_frames: int | None, clip: str = "clip"
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Writes the document into `codes_LQ` (exactly its frames) and ones into the zeroed `mask_LQ`.

        Returns text states, text positions and the prefix length, as in Sequence.
        """
        rows = _view(views, self.task.target, self.task, clip).shape[0]
        target = rows if target_frames is None else min(rows, target_frames)
        states, positions, end = self._fill_conditions(views, codes_LQ, target, clip)
        start = end
        codes_LQ[start - 1] = self._edges[-1][0]
        end = start + target
        codes_LQ[start:end] = self._content(self.task.target, views, target, clip)
        codes_LQ[end] = self._edges[-1][1]
        codes_LQ[end + 1] = self._end
        if end + 2 != codes_LQ.shape[0]:
            raise ValueError(f"{clip}: {end + 2} frames written into {codes_LQ.shape[0]}")
        counted_end = end + 2 if target == rows else end
        mask_LQ[0 if self.loss_on == "all" else start : counted_end] = 1
        return states, positions, start if self.prefix_lm else 0

    def prompt(self, views: Mapping[str, np.ndarray], *, clip: str = "clip") -> Sequence:
        """The document up to its target's start token, for generation; no target is needed and nothing is counted by the loss."""
        rows = [_view(views, segment, self.task, clip).shape[0] for segment in self.task.conditions]
        lengths = []
        for segment, count in zip(self.task.conditions, rows):
            keep = segment.durations == "keep"
            lengths.append(int(_durations(views[segment.key], clip).sum()) if keep else segment_frames(segment, count, count))
        free = max(lengths, default=0)
        frames = GLOBAL_FRAMES + SEGMENT_FRAMES * len(lengths) + sum(lengths)
        codes = np.empty((frames, self.num_codebooks), np.int64)
        states, positions, end = self._fill_conditions(views, codes, free, clip, lengths)
        codes[end - 1] = self._edges[-1][0]
        return Sequence(codes, np.zeros(codes.shape, np.int8), states, positions, end if self.prefix_lm else 0)

    def _fill_conditions(
        self, views: Mapping[str, np.ndarray], codes_LQ: np.ndarray, target: int, clip: str, lengths: list[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Writes the head and the conditions; the last value is the first frame behind the target's (not yet written) start token."""
        codes_LQ[:2] = self._head[:, None]
        end = 2
        states, positions = [], []
        for index, segment in enumerate(self.task.conditions):
            view = _view(views, segment, self.task, clip)
            count = lengths[index] if lengths else segment_frames(segment, view.shape[0], target)
            start, stop = self._edges[index]
            codes_LQ[end] = start
            codes_LQ[end + 1 + count] = stop
            inside = slice(end + 1, end + 1 + count)
            if segment.modality == CONTINUOUS:
                codes_LQ[inside] = self._continuous
                states.append(view[:count])
                positions.append(np.arange(inside.start, inside.stop, dtype=np.int32))
            else:
                codes_LQ[inside] = self._content(segment, views, count, clip)
            end = inside.stop + 1
        if not states:
            return np.zeros((0, 0), np.float16), np.zeros(0, np.int32), end + 1
        return np.concatenate(states), np.concatenate(positions), end + 1

    def _content(self, segment: SegmentConfig, views: Mapping[str, np.ndarray], count: int, clip: str) -> np.ndarray:
        """Ids of a segment's frames, (count, Q) or (count, 1); refuses codes outside their codebook."""
        view = views[segment.key]
        entries = self._entries[segment.modality]
        if segment.modality == "audio":
            if view.shape[1] < self.num_codebooks:
                raise UserError(
                    f"{clip}: view {segment.view} has fewer levels than model.num_codebooks",
                    seen=view.shape[1],
                    allowed=f"at least {self.num_codebooks}",
                    remedy="tokenize with more levels, or train with fewer codebooks",
                )
            codes = view[:count, : self.num_codebooks]
            if segment.draw == "masked":
                hidden = codes == MASKED
                _check_range(codes[~hidden], entries, segment, clip)
                return np.where(hidden, self.vocabulary.audio_mask, codes + self._audio_offsets)
            _check_range(codes, entries, segment, clip)
            return codes + self._audio_offsets
        if view.ndim == 2:
            tokens = _held(view, count, clip) if segment.durations == "keep" else view[:count, 0]
        else:
            tokens = view[:count]
        _check_range(tokens, entries, segment, clip)
        return (tokens + np.int64(self._offsets[segment.modality]))[:, None]

    def revert(self, sequence: Sequence) -> dict[str, np.ndarray]:
        """The views that `build` makes this sequence from, by segment key, as raw codes.

        Phones whose durations were collapsed come back with duration 0 (unknown); kept durations of equal phones side by side come back
        added up.
        """
        codes = sequence.codes_LQ
        self._expect(codes, 0, int(self._head[0]))
        self._expect(codes, 1, int(self._head[1]))
        end, taken = 2, 0
        views: dict[str, np.ndarray] = {}
        for segment, (start, stop) in zip(self.task.segments, self._edges):
            self._expect(codes, end, start)
            found = np.flatnonzero(codes[end + 1 :, 0] == stop)
            if found.size == 0:
                raise UserError(f"not a sequence of task {self.task.name}: no {segment.end} behind frame {end}")
            inside = codes[end + 1 : end + 1 + int(found[0])]
            if segment.modality == CONTINUOUS:
                views[segment.key] = sequence.text_states[taken : taken + len(inside)]
                taken += len(inside)
            else:
                views[segment.key] = self._raw(segment, inside)
            end += len(inside) + 2
        self._expect(codes, end, self._end)
        return views

    def _raw(self, segment: SegmentConfig, ids: np.ndarray) -> np.ndarray:
        if segment.modality == "audio":
            return np.where(ids == self.vocabulary.audio_mask, MASKED, ids - self._audio_offsets).astype(np.uint16)
        tokens = (ids[:, 0] - self._offsets[segment.modality]).astype(np.uint16)
        if segment.view.split(".")[0] != "phone":
            return tokens
        if segment.durations == "collapse":
            return np.stack([tokens, np.zeros_like(tokens)], axis=1)
        starts = np.flatnonzero(np.diff(tokens, prepend=np.uint16(MASKED)) != 0)
        lasts = np.diff(starts, append=len(tokens))
        return np.stack([tokens[starts], lasts.astype(np.uint16)], axis=1)

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


def _view(views: Mapping[str, np.ndarray], segment: SegmentConfig, task: TaskConfig, clip: str) -> np.ndarray:
    if segment.key not in views:
        raise UserError(
            f"{clip}: task {task.name} needs {segment.key}", seen=", ".join(views), allowed=", ".join(s.key for s in task.segments)
        )
    return views[segment.key]


def _durations(phones: np.ndarray, clip: str) -> np.ndarray:
    durations = phones[:, 1]
    if not durations.any():
        raise UserError(
            f"{clip}: its phones have no durations",
            remedy="tokenize with a phone tokenizer that aligns, or leave out the tasks svs and s_edit",
        )
    return durations


def _held(phones: np.ndarray, count: int, clip: str) -> np.ndarray:
    """Each phone repeated over its frames, fitted to `count`: cut, or the last phone held on."""
    frames = np.repeat(phones[:, 0], _durations(phones, clip))[:count]
    return np.pad(frames, (0, count - len(frames)), mode="edge") if len(frames) < count else frames


def _check_range(codes: np.ndarray, entries: int, segment: SegmentConfig, clip: str) -> None:
    if codes.size and int(codes.max()) >= entries:
        raise UserError(
            f"{clip}: a code of view {segment.view} lies outside {segment.modality}",
            seen=int(codes.max()),
            allowed=f"0..{entries - 1}",
            remedy="the shard was made by another tokenizer than model.vocabulary describes",
        )
