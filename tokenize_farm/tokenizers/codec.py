"""View `audio` by the project's universal codec: (T, Q) uint16, and back to samples."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from uniaudio.configs.load import validate
from uniaudio.configs.section import Section
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.protocol import Clip
from uniaudio.tokenize_farm.tokenizers.resources import digest, pick_device, require

if TYPE_CHECKING:
    from uniaudio.tokenize_farm.codec.batches import BatchEncoder
    from uniaudio.tokenize_farm.codec.model import UniversalCodec


class CodecOptions(Section):
    """weights: a file of `uniaudio codec train`; the shipped one unless given."""

    weights: str | None = None
    num_codebooks: int = Field(8, ge=1, description="levels stored; training picks the first Q of them")
    device: str = "auto"
    batch_seconds: float = Field(300.0, gt=0, description="padded audio encoded at once on a GPU; the CPU takes clip by clip")


class CodecTokenizer:
    """name `codec`."""

    name, view = "codec", "audio"

    def __init__(self, options: Mapping[str, Any]) -> None:
        require("torch", needed_for="tokenizer codec")
        from uniaudio.tokenize_farm.codec.weights import SHIPPED, codes_digest, read_config

        self.options = validate(CodecOptions, dict(options), source="tokenizer codec")
        self._weights = Path(self.options.weights) if self.options.weights else SHIPPED
        levels = read_config(self._weights).num_codebooks
        if self.options.num_codebooks > levels:
            raise UserError("tokenizer codec: num_codebooks", seen=self.options.num_codebooks, allowed=f"1..{levels}")
        self.version = digest(codes_digest(self._weights), str(self.options.num_codebooks))

    @cached_property
    def _codec(self) -> "UniversalCodec":
        from uniaudio.tokenize_farm.codec.weights import load_codec

        return load_codec(self._weights, device=pick_device(self.options.device))

    @cached_property
    def _encoder(self) -> "BatchEncoder":
        from uniaudio.tokenize_farm.codec.batches import BatchEncoder

        return BatchEncoder(self._codec, self.options.num_codebooks)

    def load(self) -> None:
        """Loads the codec and encodes a second, so that on a GPU nothing is left to start up."""
        self.encode([Clip(ManifestRow(id="start", audio_filepath="none"), np.zeros(16_000, np.float32))])

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """(T, Q) uint16 for every clip, T = ceil(S / 320)."""
        return self.begin(clips)()

    def begin(self, clips: Sequence[Clip]) -> Callable[[], list[np.ndarray | None]]:
        """Starts what `encode` does; what is returned waits for the codes. A GPU works meanwhile, a CPU is done before."""
        encoder, count = self._encoder, len(clips)
        batches = self._batches([len(clip.samples) for clip in clips], encoder.device.type)
        begun = [(batch, encoder.begin([clips[i].samples for i in batch])) for batch in batches]

        def codes() -> list[np.ndarray | None]:
            by_clip = {i: array for batch, pending in begun for i, array in zip(batch, pending.codes(), strict=True)}
            return [by_clip[i] for i in range(count)]

        return codes

    def _batches(self, lengths: list[int], device_type: str) -> list[list[int]]:
        """Clip numbers a batch: one each on the CPU; on a GPU by length, up to `batch_seconds` with the padding."""
        if device_type == "cpu":
            return [[i] for i in range(len(lengths))]
        limit = self.options.batch_seconds * 16_000
        batches: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= limit:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    @property
    def context_frames(self) -> int:
        """Frames on each side that a frame's samples can depend on: what decoding piece by piece needs."""
        return max(self._codec.reach)

    def decode(self, codes_TQ: np.ndarray) -> np.ndarray:
        """Codes of the first Q levels (any Q up to the codec's) -> float32 samples (T * 320,)."""
        import torch

        return self._codec.decode(torch.from_numpy(codes_TQ.astype(np.int64))[None]).clamp(-1, 1)[0].cpu().numpy()
