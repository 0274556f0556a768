"""Codes as they come -> samples that can be heard at once, the same as those of decoding the whole.

A frame's samples depend on a bounded neighbourhood (`context_frames` of the tokenizer), so a frame is given out when the frames behind it
are known; each chunk is decoded with its neighbourhood. T frames, Q codebooks, S samples at 16 kHz.
"""

from typing import Protocol, runtime_checkable

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.tokenizers.protocol import SAMPLES_PER_FRAME, Tokenizer

FIRST_CHUNK = 5  # frames of the first chunk: it is heard as soon as may be
CHUNK = 25  # of the others: half a second


@runtime_checkable
class StreamingTokenizer(Protocol):
    """An audio tokenizer whose samples depend on a bounded number of frames."""

    @property
    def context_frames(self) -> int:
        """Frames on each side that a frame's samples can depend on."""
        ...

    def decode(self, codes_TQ: np.ndarray) -> np.ndarray:
        """Codes -> float32 samples, 320 a frame."""
        ...


class WaveStream:
    """Give it codes with `push`, end it with `finish`; what both return joins to the samples of the whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not isinstance(tokenizer, StreamingTokenizer):
            raise UserError(
                "this audio tokenizer cannot decode piece by piece",
                seen=tokenizer.name,
                allowed="codec",
                remedy="generate without --stream",
            )
        self._tokenizer = tokenizer
        self._codes_TQ: np.ndarray | None = None
        self._given = 0  # frames whose samples were given out

    def push(self, codes_TQ: np.ndarray) -> np.ndarray:
        """The samples that these codes make certain; (0,) while a chunk is not full."""
        self._codes_TQ = codes_TQ if self._codes_TQ is None else np.concatenate([self._codes_TQ, codes_TQ])
        certain = len(self._codes_TQ) - self._tokenizer.context_frames
        if certain - self._given < (FIRST_CHUNK if self._given == 0 else CHUNK):
            return np.zeros(0, np.float32)
        return self._decode(certain)

    def finish(self) -> np.ndarray:
        """The samples that are left."""
        frames = 0 if self._codes_TQ is None else len(self._codes_TQ)
        return self._decode(frames) if frames > self._given else np.zeros(0, np.float32)

    def _decode(self, end: int) -> np.ndarray:
        assert self._codes_TQ is not None
        left = max(0, self._given - self._tokenizer.context_frames)
        right = min(len(self._codes_TQ), end + self._tokenizer.context_frames)
        samples = self._tokenizer.decode(self._codes_TQ[left:right])
        start, self._given = self._given, end
        return samples[(start - left) * SAMPLES_PER_FRAME : (end - left) * SAMPLES_PER_FRAME]
