"""How full rows get, by strategy, on lengths like the paper's: the table of docs/data.md.

Lengths of documents in frames, special tokens and conditions included: speech (LibriLight and MLS cut at pauses: 2 to 20 s, twice for
tasks that see a condition of the clip's own length, plus prompt and phones), sound (AudioSet, WavCaps, AudioCaps: 10 s), music (30 s cuts),
singing (3 to 10 s).

    python tests/packing_table.py
"""

import sys

import numpy as np

from uniaudio.pretrain.data.packing import best_fit

DOCUMENTS = 20_000


def lengths(rng: np.random.Generator) -> np.ndarray:
    """(DOCUMENTS,) frames, in the paper's proportions of hours (60 speech TTS and VC, 20 SE, TSE, 13 sound, 7 music, a little singing)."""
    speech = np.clip(rng.lognormal(np.log(10), 0.45, DOCUMENTS), 2, 20) * 50
    task = rng.choice(7, DOCUMENTS, p=[0.3, 0.3, 0.13, 0.13, 0.09, 0.03, 0.02])
    phones, prompt, text = speech / 5, 150, rng.integers(8, 40, DOCUMENTS)
    by_task = [speech + phones + prompt + 9, 2 * speech + prompt + 9, 2 * speech + 7, 2 * speech + prompt + 9]
    by_task += [500 + text + 7.0, 1500 + text + 7.0, 3 * np.clip(speech, 150, 500) + prompt + 11]
    return np.choose(task, by_task).astype(int)


def next_fit(frames: np.ndarray, row: int) -> int:
    """Rows of documents in the order they come, a new row where one does not fit: what a streaming loader does."""
    rows, left = 0, 0
    for length in frames.tolist():
        if length > left:
            rows, left = rows + 1, row
        left -= length
    return rows


def bucketed(frames: np.ndarray, budget: int) -> float:
    """Share of a batch's `budget` that is documents, where batches hold documents of like length, padded to the longest, as the released
    code's do."""
    batches, begin, ordered = 0, 0, np.sort(frames)[::-1]
    while begin < len(ordered):
        batches, begin = batches + 1, begin + max(1, budget // int(ordered[begin]))
    return frames.sum() / (batches * budget)


def main() -> None:
    """One line a row size."""
    frames = lengths(np.random.default_rng(0))
    say = sys.stdout.write
    say("| frames a row | best fit | most that is possible | next fit | length buckets, padded, of 8192 frames |\n|---|---|---|---|---|\n")
    for row in (2048, 3000, 8192):
        fitting = np.minimum(frames, row)
        best = best_fit(fitting, np.zeros(DOCUMENTS, int), frames=row, max_documents=63, max_states=0)
        best_fill = fitting.sum() / ((best.max() + 1) * row)
        simple = fitting.sum() / (next_fit(fitting, row) * row)
        say(f"| {row} | {best_fill:.2%} | {bound(fitting, row):.2%} | {simple:.2%} | {bucketed(fitting, 8192):.2%} |\n")


def bound(frames: np.ndarray, row: int) -> float:
    """Most that any packing can fill (Martello and Toth's bound L2): documents of more than half a row never share one, and what they leave
    free takes documents of at least k frames only where it is as long, for every k."""
    needed = -(-int(frames.sum()) // row)
    large = frames > row / 2
    for k in np.unique(frames[~large]):
        alone, paired = frames > row - k, large & (frames <= row - k)
        small = int(frames[~large & (frames >= k)].sum())
        free = int((row - frames[paired]).sum())
        needed = max(needed, int(alone.sum()) + int(paired.sum()) + max(0, -(-(small - free) // row)))
    return frames.sum() / (needed * row)


if __name__ == "__main__":
    main()
