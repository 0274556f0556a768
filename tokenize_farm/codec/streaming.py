"""Encoding and decoding a stream as it comes; joined, the results are those of the whole clip.

A frame's codes need a bounded neighbourhood (`UniversalCodec.reach`), so what is held back is `reach[1]` frames: one for a causal
codec (its latency: two frames a direction), about a third of a second for the shipped one. `reach[0]` frames of the past are kept
and computed again with every call, so pushing a few tenths of a second at once costs least.
"""

import torch
from torch import Tensor

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.model import UniversalCodec


class _Stream:
    """Keeps the part of the past that is still needed, and says which frames have become final."""

    def __init__(self, codec: UniversalCodec, step: int) -> None:
        self.codec, self._step = codec, step
        self._held: Tensor | None = None  # what came, from frame `_first` on: `_step` entries a frame
        self._first, self._done, self._ended = 0, 0, False

    def _push(self, new: Tensor, *, last: bool) -> tuple[Tensor, int, int] | None:
        """(what is held, first and end of the frames in it that are final now), or None where there is none yet."""
        if self._ended:
            raise UserError("this stream has ended", remedy="make a new one for the next clip")
        self._ended = last
        self._held = new if self._held is None else torch.cat([self._held, new])
        before, after = self.codec.reach
        complete = self._first + (-(-len(self._held) // self._step) if last else len(self._held) // self._step)
        stop = complete if last else complete - after
        if stop <= self._done:
            return None
        held, first, start = self._held, self._first, self._done
        self._done = stop
        self._first = max(first, stop - before)
        self._held = held[(self._first - first) * self._step :]
        return held, start - first, stop - first


class StreamEncoder(_Stream):
    """Samples at 16 kHz in, codes of the first `num_codebooks` levels out."""

    def __init__(self, codec: UniversalCodec, num_codebooks: int | None = None) -> None:
        super().__init__(codec, codec.config.hop)
        self._levels = codec.config.num_codebooks if num_codebooks is None else num_codebooks

    def push(self, samples_S: Tensor, *, last: bool = False) -> Tensor:
        """Any number of samples, none too -> codes (t, n) int64 of the frames that are final; with `last` all the rest.

        Raises:
            UserError: NaN or infinite samples, or a stream that has ended.
        """
        ready = self._push(samples_S.float(), last=last)
        if ready is None:
            return torch.zeros(0, self._levels, dtype=torch.int64)
        held, start, stop = ready
        return self.codec.encode_part(held[None], start, stop, self._levels)[0]


class StreamDecoder(_Stream):
    """Codes in, samples at 16 kHz out."""

    def __init__(self, codec: UniversalCodec) -> None:
        super().__init__(codec, 1)

    def push(self, codes_TQ: Tensor, *, last: bool = False) -> Tensor:
        """Any number of frames (t, n), none too -> samples (s,) float32 that are final; with `last` all the rest.

        Raises:
            UserError: a code outside the codebook, or a stream that has ended.
        """
        ready = self._push(codes_TQ, last=last)
        if ready is None:
            return torch.zeros(0)
        held, start, stop = ready
        return self.codec.decode_part(held[None], start, stop)[0]
