"""How many frames each part of a document takes: one rule for the plan (arrays of clips) and for the builder (one clip).

Owns lengths and cutting; `sequence.py` owns what stands in the frames. Lengths are frames at 50 Hz.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from uniaudio.configs.tasks import CONTINUOUS, SegmentConfig, TaskConfig

FRAME_RATE = 50
MIN_CUT_FRAMES = FRAME_RATE  # a target is not cut below one second: the clip is left out instead

# <start> <TASK_task> ... <end>, and the start and end of each segment
GLOBAL_FRAMES = 3
SEGMENT_FRAMES = 2

Lengths = TypeVar("Lengths", int, np.ndarray)


def segment_frames(segment: SegmentConfig, rows: Lengths, target_frames: Lengths) -> Lengths:
    """Content frames of a segment whose view has `rows` rows, beside a target of `target_frames`; ints, or arrays over clips."""
    minimum = np.minimum if isinstance(rows, np.ndarray) else min
    if segment.durations == "keep":
        return target_frames
    if segment.max_rows is not None:
        rows = minimum(rows, segment.max_rows)  # type: ignore[type-var,assignment]
    return minimum(rows, target_frames) if segment.follows_target else rows  # type: ignore[type-var,return-value]


def document_frames(task: TaskConfig, rows: Mapping[str, Lengths], target_frames: Lengths) -> Lengths:
    """Frames of the whole document, special tokens included; `rows` by segment key (the prompt's: those of its crop)."""
    total = target_frames + (GLOBAL_FRAMES + SEGMENT_FRAMES * len(task.segments))
    for segment in task.conditions:
        total = total + segment_frames(segment, rows[segment.key], target_frames)
    return total


def text_states(task: TaskConfig, rows: Mapping[str, np.ndarray], clips: int) -> np.ndarray:
    """Continuous text positions of each document, (clips,) int64."""
    total = np.zeros(clips, np.int64)
    for segment in task.conditions:
        if segment.modality == CONTINUOUS:
            total += segment_frames(segment, rows[segment.key], rows[task.target.key])
    return total


def fit_target(task: TaskConfig, rows: Mapping[str, np.ndarray], frames: int) -> np.ndarray:
    """Target frames with which each document takes at most `frames`, (clips,) int64; 0 where the conditions leave less than a second.

    Conditions that follow the target shrink with it; the others are kept whole.
    """
    target = rows[task.target.key].astype(np.int64)
    followers = sum(segment.follows_target for segment in task.conditions)
    fixed = np.full_like(target, GLOBAL_FRAMES + SEGMENT_FRAMES * len(task.segments))
    for segment in task.conditions:
        if not segment.follows_target:
            fixed += segment_frames(segment, rows[segment.key], target)
    room = (frames - fixed) // (1 + followers)
    cut = np.where(room >= MIN_CUT_FRAMES, room, 0)
    return np.where(document_frames(task, rows, target) <= frames, target, np.minimum(cut, target))
