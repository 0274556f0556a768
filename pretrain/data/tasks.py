"""How many frames each part of a document takes: one rule for the plan (arrays of clips) and for the builder (one clip).

Owns lengths and cutting; `sequence.py` owns what stands in the frames. Lengths are frames at 50 Hz.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from uniaudio.configs.tasks import CONTINUOUS, SegmentConfig, TaskConfig
from uniaudio.pretrain.data.draw import below, hashed

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

    Conditions that follow the target shrink with it; the others are kept whole. Only audio is cut: half the words of a clip are not the
    words of half a clip.
    """
    target = rows[task.target.key].astype(np.int64)
    followers = sum(segment.follows_target for segment in task.conditions)
    fixed = np.full_like(target, GLOBAL_FRAMES + SEGMENT_FRAMES * len(task.segments))
    for segment in task.conditions:
        if not segment.follows_target:
            fixed += segment_frames(segment, rows[segment.key], target)
    room = (frames - fixed) // (1 + followers)
    cut = np.where((room >= MIN_CUT_FRAMES) & (task.target.modality == "audio"), room, 0)
    return np.where(document_frames(task, rows, target) <= frames, target, np.minimum(cut, target))


def split_view(task: TaskConfig, rows: np.ndarray, frames: int, draws: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Cuts the view of a task that `is_split` into its pieces: (first row of the target, rows by segment key), each (clips,) int64.

    Each piece holds at least one row, so clips of fewer rows than pieces get a target of 0. A middle is drawn so that the whole document
    takes at most `frames`: what of the view is beyond, `after` leaves out. A rest goes to the end of the view; `fit_target` cuts it.
    """
    rows = rows.astype(np.int64)
    shortest, longest = (max(1, round(seconds * FRAME_RATE)) for seconds in task.target.mask_seconds)
    span = shortest + below(hashed(draws, 4), longest - shortest + 1)
    view = task.target.view
    if task.target.draw == "rest":
        head = np.minimum(span, rows // 2)
        return head, {f"{view}.before": head, view: np.where(head > 0, rows - head, 0)}
    seen = np.minimum(rows, frames - GLOBAL_FRAMES - SEGMENT_FRAMES * len(task.segments))
    usable = seen >= 3
    middle = np.where(usable, np.minimum(span, seen - 2), 0)
    start = np.where(usable, 1 + below(hashed(draws, 5), np.maximum(seen - middle - 1, 1)), 0)
    return start, {f"{view}.before": start, f"{view}.after": np.where(usable, seen - start - middle, 0), view: middle}
