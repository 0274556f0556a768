"""Clips -> codes in batches on a GPU that never waits for the host: while one batch is encoded, the next is filled and copied.

Owns the pinned memory, the stream of the copies and how many batches are under way. Which clips make a batch is the tokenizer's choice, the
codes are `UniversalCodec.encode`'s. On a CPU the same code runs step after step.
Shapes: B clips, S samples (whole frames), T frames, Q levels.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.model import UniversalCodec, refuse_unless_finite

_UNDER_WAY = 3  # batches: one is encoded, one is ready on the GPU, one is filled


class PendingCodes:
    """A batch whose codes are being made."""

    def __init__(self, codes_BTQ: Tensor, all_finite: Tensor, frames: list[int], done: torch.cuda.Event | None) -> None:
        """codes_BTQ int16, all_finite: in the host's memory, whole once `done` has come."""
        self._codes_BTQ, self._all_finite, self._frames, self._done = codes_BTQ, all_finite, frames, done

    def wait(self) -> None:
        """Until the batch is done; other threads go on."""
        if self._done is not None:
            self._done.synchronize()

    def codes(self) -> list[np.ndarray]:
        """(T, Q) uint16 of each clip; waits.

        Raises:
            UserError: NaN or infinite samples in the batch.
        """
        self.wait()
        refuse_unless_finite(self._all_finite)
        codes_BTQ = self._codes_BTQ.numpy().view(np.uint16)
        return [codes_TQ[:frames].copy() for codes_TQ, frames in zip(codes_BTQ, self._frames, strict=True)]


class BatchEncoder:
    """Encodes batches with the first `num_codebooks` levels of a codec. One thread begins; any may wait."""

    def __init__(self, codec: UniversalCodec, num_codebooks: int) -> None:
        """Raises UserError for more levels than the codec has."""
        self._codec, self._num_codebooks = codec, codec.check_levels(num_codebooks)
        self.device = codec.spectral.window.device
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._under_way: deque[PendingCodes] = deque()

    @torch.inference_mode()
    def begin(self, clips: Sequence[np.ndarray]) -> PendingCodes:
        """Starts the encoding of clips, float32 (S,) each, as one batch; waits only for the third batch before it.

        Raises:
            UserError: a clip without samples.
        """
        if not all(map(len, clips)):
            raise UserError("a clip without samples cannot be encoded", seen=list(map(len, clips)), allowed="one sample at least")
        self._wait_for_room()
        frames = [-(-len(clip) // self._codec.config.hop) for clip in clips]
        samples_BS, mask_BT = self._copy(self._fill(clips, max(frames)), self._mask(frames))
        pending = PendingCodes(*self._encode(samples_BS, mask_BT), frames, self._mark())
        self._under_way.append(pending)
        return pending

    def _wait_for_room(self) -> None:
        while len(self._under_way) >= _UNDER_WAY:
            self._under_way.popleft().wait()

    def _fill(self, clips: Sequence[np.ndarray], frames: int) -> Tensor:
        """(B, frames * hop) in pinned memory. It is not used again before its copy has ended: torch's allocator sees to that."""
        rows_BS = torch.empty(len(clips), frames * self._codec.config.hop, pin_memory=self._copies is not None)
        for row, clip in zip(rows_BS.numpy(), clips, strict=True):  # numpy takes the read-only arrays of Ray's object store as they are
            row[: len(clip)] = clip
            row[len(clip) :] = 0.0
        return rows_BS

    def _mask(self, frames: list[int]) -> Tensor | None:
        """(B, T) bool, pinned; None where every clip fills its row: multiplying by one changes no bit."""
        if min(frames) == max(frames):
            return None
        mask_BT = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
        return mask_BT.pin_memory() if self._copies is not None else mask_BT

    def _copy(self, samples_BS: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both on the codec's device, on a stream of their own, so that the batch before is encoded meanwhile."""
        with torch.cuda.stream(self._copies) if self._copies is not None else nullcontext():
            samples = samples_BS.to(self.device, non_blocking=True)
            mask = None if mask_BT is None else mask_BT.to(self.device, non_blocking=True)
        if self._copies is not None:
            encoding = torch.cuda.current_stream(self.device)
            encoding.wait_stream(self._copies)
            for tensor in (samples, mask):
                if tensor is not None:
                    tensor.record_stream(encoding)
        return samples, mask

    def _encode(self, samples_BS: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes (B, T, Q) int16 and whether all samples are finite, on their way to the host."""
        codes = self._codec.encode_frames(samples_BS, mask_BT, self._num_codebooks)
        all_finite = torch.isfinite(samples_BS).all()
        return codes.to(torch.int16).to("cpu", non_blocking=True), all_finite.to("cpu", non_blocking=True)

    def _mark(self) -> torch.cuda.Event | None:
        """Comes when all that was started so far is done."""
        if self._copies is None:
            return None
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))
        return done
