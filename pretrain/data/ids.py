"""One code a frame, of many pieces at once: what `sequence` does for one view after another."""

from collections.abc import Callable, Sequence

import numpy as np

from uniaudio.pretrain.data.documents import starts_of
from uniaudio.pretrain.data.sequence import Part, check_range, hold


def spread(starts: np.ndarray, counts: np.ndarray, stride: np.ndarray | int = 1) -> np.ndarray:
    """(sum of counts,) starts[i], starts[i] + stride[i], ... counts[i] times, run after run."""
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    if isinstance(stride, np.ndarray):
        within *= np.repeat(stride, counts)
    return np.repeat(starts, counts) + within


def held_codes(views: np.ndarray, starts: np.ndarray, rows: np.ndarray, counts: np.ndarray, name: Callable[[int], str]) -> np.ndarray:
    """(sum of counts,) phones held over their durations, each run cut to its count, or its last sounding phone held on.

    views: uint16; run i is rows[i] pairs (phone, frames) from starts[i] on. UserError, with name(i), where a run has no durations.
    """
    at = spread(starts, rows, np.full(len(rows), 2))
    run = np.repeat(np.arange(len(rows)), rows)
    sounding = np.flatnonzero(views[at + 1])
    at, run = at[sounding], run[sounding]
    first = starts_of(np.bincount(run, minlength=len(rows)))
    if len(silent := np.flatnonzero(np.diff(first) == 0)):
        i = int(silent[0])
        hold(views[starts[i] : starts[i] + 2 * rows[i]].reshape(-1, 2), int(counts[i]), lambda: name(i))  # raises
    ends = np.cumsum(views[at + 1], dtype=np.int64)
    ends -= np.repeat((ends - views[at + 1])[first[:-1]], np.diff(first))
    ends = np.minimum(ends, counts[run])
    ends[first[1:] - 1] = counts
    lasts = np.diff(ends, prepend=0)
    lasts[first[:-1]] = ends[first[:-1]]
    return np.repeat(views[at], lasts)


def check_codes(codes: np.ndarray, counts: np.ndarray, parts: Sequence[Part], entries: np.ndarray, name: Callable[[int], str]) -> None:
    """UserError, with name(i), for the first of the codes, counts[i] of run i, that is not below entries[i], those of its part."""
    if len(strays := np.flatnonzero(codes >= np.repeat(entries, counts))):
        i = int(np.searchsorted(np.cumsum(counts), strays[0], side="right"))
        check_range(codes[strays[:1]], parts[i], lambda: name(i))
