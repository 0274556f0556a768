"""Which codes of a clip are hidden: a span where a segment is drawn `masked`, and what `data.hide_history` hides of a target.

Functions of the document's draw and, for words, of aligned phones.
"""

import numpy as np

from uniaudio.configs.tasks import SegmentConfig
from uniaudio.pretrain.data.draw import below, hashed
from uniaudio.pretrain.data.tasks import FRAME_RATE
from uniaudio.tokenize_farm.schema import PHONE_MARKS, UNKNOWN_PHONE

HISTORY_SPAN = 8  # frames hidden at once, 160 ms: longer than most sounds, so that the frames around do not tell them


def hidden_history(share: float, frames: int, draw: np.ndarray | int) -> np.ndarray:
    """(frames,) bool: which frames of a target those behind them are not shown; spans of HISTORY_SPAN frames.

    A document's own share is drawn evenly from 0 to twice `share`: some are shown nearly whole, as in generation.
    """
    own = 2 * share * float(hashed(draw, 6)[0]) / 2.0**64
    phase = int(below(hashed(draw, 7), HISTORY_SPAN)[0])
    spans = hashed(draw, 8, np.arange(frames // HISTORY_SPAN + 2)).astype(np.float64) / 2.0**64 < own
    return np.repeat(spans, HISTORY_SPAN)[phase : phase + frames]


def hidden_span(segment: SegmentConfig, frames: int, draw: np.ndarray | int, phones: np.ndarray | None = None) -> tuple[int, int]:
    """First frame and last + 1 of the span inside the first `frames` of a view: length and place drawn from `draw`.

    With aligned `phones` (P, 2) the span is one of whole words, `segment.mask_words` of them; a word that `frames` cut in two is hidden up
    to there.
    """
    return _word_span(phones, segment, frames, draw) if phones is not None else _span(segment, frames, draw)


def _span(segment: SegmentConfig, frames: int, draw: np.ndarray | int) -> tuple[int, int]:
    shortest, longest = (max(1, round(seconds * FRAME_RATE)) for seconds in segment.mask_seconds)
    length = min(frames, shortest + int(below(hashed(draw, 4), longest - shortest + 1)[0]))
    start = int(below(hashed(draw, 5), frames - length + 1)[0])
    return start, start + length


def _word_span(phones: np.ndarray, segment: SegmentConfig, frames: int, draw: np.ndarray | int) -> tuple[int, int]:
    """First and last frame + 1 of words one after another; a span of seconds where no word lies in the first `frames`."""
    spans = word_spans(phones)
    spans = spans[spans[:, 0] < frames]
    if len(spans) == 0:
        return _span(segment, frames, draw)
    fewest, most = segment.mask_words
    words = min(len(spans), fewest + int(below(hashed(draw, 4), most - fewest + 1)[0]))
    first = int(below(hashed(draw, 5), len(spans) - words + 1)[0])
    return int(spans[first, 0]), min(frames, int(spans[first + words - 1, 1]))


def word_spans(phones: np.ndarray) -> np.ndarray:
    """(W, 2) first frame and last + 1 of each word of aligned phones (P, 2): runs of sounds between marks; none without a frame."""
    ids, ends = phones[:, 0].astype(np.int64), np.cumsum(phones[:, 1], dtype=np.int64)
    sounds = (ids >= PHONE_MARKS) | (ids == UNKNOWN_PHONE)
    edges = np.flatnonzero(np.diff(sounds.astype(np.int8), prepend=0, append=0))
    first, last = edges[::2], edges[1::2] - 1
    spans = np.stack([ends[first] - phones[first, 1], ends[last]], axis=1)
    return spans[spans[:, 1] > spans[:, 0]]
