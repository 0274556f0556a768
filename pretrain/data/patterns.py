"""Orders in which the Q codes of audio frames can be predicted (paper, comparison of structures; names of MusicGen): one table a pattern.

A structure is a re-arrangement of the codes into steps of Q slots, each of which holds a code of some frame or nothing, and a model that
predicts the codes of a step from the steps before it. multi_scale and parallel keep a frame a step (the local stack tells the codes of a
frame apart; without it they are independent), delay shifts level q by q steps, flattening has one code a step, coarse_first all of level 0
and then the other levels of each frame. Conditions and specials that fill a whole frame stay one step.
T frames, S steps, Q codebooks. Every code is in exactly one slot, so losses of all structures are of the same codes.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from uniaudio.configs.model import ModelConfig, Structure
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.vocabulary import Vocabulary

EMPTY = -1
_MULTIPLE = 64  # steps of a row: few shapes, so that kernels are tuned few times


def frames_of_slots(structure: Structure, frames: int, levels: int) -> np.ndarray:
    """(S, Q) int64: the frame whose code of level q stands at (s, q), or EMPTY."""
    if structure == "delay":
        table = np.arange(frames + levels - 1)[:, None] - np.arange(levels)
        return np.where((table >= 0) & (table < frames), table, EMPTY)
    if structure == "flattening":
        steps = np.arange(frames * levels)
        table = np.full((len(steps), levels), EMPTY)
        table[steps, steps % levels] = steps // levels
        return table
    whole = np.repeat(np.arange(frames)[:, None], levels, axis=1)
    if structure == "coarse_first":
        table = np.full((2 * frames, levels), EMPTY)
        table[:frames, 0], table[frames:, 1:] = whole[:, 0], whole[:, 1:]
        return table
    return whole


def build(codes_TQ: np.ndarray, structure: Structure, *, empty: int) -> np.ndarray:
    """The codes of some frames as steps, (S, Q)."""
    table = frames_of_slots(structure, *codes_TQ.shape)
    return np.where(table == EMPTY, empty, np.take_along_axis(codes_TQ, np.maximum(table, 0), axis=0))


def revert(codes_SQ: np.ndarray, structure: Structure, frames: int) -> np.ndarray:
    """The inverse of `build`, (T, Q). ValueError where so many frames do not make so many steps."""
    table = frames_of_slots(structure, frames, codes_SQ.shape[1])
    if len(table) != len(codes_SQ):
        raise ValueError(f"{structure}: {frames} frames make {len(table)} steps | seen: {len(codes_SQ)}")
    steps, levels = np.nonzero(table != EMPTY)
    codes_TQ = np.empty((frames, codes_SQ.shape[1]), codes_SQ.dtype)
    codes_TQ[table[steps, levels], levels] = codes_SQ[steps, levels]
    return codes_TQ


@dataclass(frozen=True)
class Arranger:
    """Batches of frames -> batches of steps. audio: ids of all levels, with what hides a code (`hidden`) beside. pad: fills empty slots."""

    structure: Structure
    audio: range
    hidden: int
    pad: int

    def __call__(self, batch: Batch) -> Batch:
        """The same documents, longer; what is not audio stays as it is. Rows are as long as the longest needs, and at least 64 steps."""
        rows = [self._row(batch, row) for row in range(batch.codes_BTQ.shape[0])]
        steps = -(-max(1, *(len(table) for table, _ in rows)) // _MULTIPLE) * _MULTIPLE
        arranged = [self._place(batch, row, *rows[row], steps) for row in range(len(rows))]
        return Batch(*(torch.stack(parts) for parts in zip(*arranged)))

    def _row(self, batch: Batch, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames of the slots of a row's documents, (S, Q), and the first step of each frame and of the end, (T + 1,)."""
        codes_TQ = batch.codes_BTQ[row].numpy()
        documents = int((batch.task_ids_BD[row] >= 0).sum())
        used = int(batch.document_starts_BD[row, documents])
        first = codes_TQ[:used, 0]
        is_audio = ((first >= self.audio.start) & (first < self.audio.stop)) | (first == self.hidden)
        edges = [0, *(np.flatnonzero(np.diff(is_audio)) + 1).tolist(), used]
        tables, step_of, at = [], np.empty(len(codes_TQ) + 1, np.int64), 0
        for begin, end in itertools.pairwise(edges):
            audio = end > begin and bool(is_audio[begin])
            table = frames_of_slots(self.structure if audio else "parallel", end - begin, codes_TQ.shape[1])
            step_of[begin:end] = at if audio else at + np.arange(end - begin)
            tables.append(np.where(table == EMPTY, EMPTY, table + begin))
            at += len(table)
        step_of[used:] = at
        return np.concatenate(tables), step_of

    def _place(self, batch: Batch, row: int, table_SQ: np.ndarray, step_of: np.ndarray, steps: int) -> tuple[torch.Tensor, ...]:
        """The tensors of one row, in the order of Batch's fields."""
        source, filled, count = np.maximum(table_SQ, 0), table_SQ != EMPTY, len(table_SQ)
        codes = np.full((steps, table_SQ.shape[1]), self.pad, np.int64)
        codes[:count] = np.where(filled, np.take_along_axis(batch.codes_BTQ[row].numpy(), source, axis=0), self.pad)
        mask = np.zeros(codes.shape, np.int8)
        mask[:count] = np.where(filled, np.take_along_axis(batch.target_mask_BTQ[row].numpy(), source, axis=0), 0)
        documents = int((batch.task_ids_BD[row] >= 0).sum())
        old_starts = batch.document_starts_BD[row].numpy().astype(np.int64)
        starts = np.full(len(old_starts), steps, np.int32)
        starts[: documents + 1] = step_of[old_starts[: documents + 1]]  # behind the documents: the padding
        prefix = np.zeros(len(starts), np.int32)
        ends = old_starts[:documents] + batch.prefix_lengths_BD[row, :documents].numpy()
        prefix[:documents] = step_of[ends] - starts[:documents]
        positions = np.zeros(steps, np.int32)
        places = np.arange(count)
        positions[:count] = places - starts[np.searchsorted(starts[:documents], places, side="right") - 1]
        text = batch.text_positions_BS[row].numpy()
        text = np.where(text >= 0, step_of[np.maximum(text, 0)], EMPTY).astype(np.int32)
        made = map(torch.from_numpy, (codes, mask, starts, prefix, positions))
        return (*made, batch.text_states_BSC[row], torch.from_numpy(text), batch.task_ids_BD[row])


def make_arranger(model: ModelConfig, vocabulary: Vocabulary) -> Arranger | None:
    """What a model's batches pass through; None where a frame is a step."""
    if model.structure in ("multi_scale", "parallel"):
        return None
    return Arranger(model.structure, vocabulary.modality("audio"), vocabulary.audio_mask, vocabulary.special("<pad>"))
