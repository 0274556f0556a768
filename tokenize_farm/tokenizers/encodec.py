"""View `audio` by a pretrained EnCodec (transformers' EncodecModel) from a local folder or the hub: (T, Q) uint16, and back."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
from pydantic import Field

from uniaudio.configs.load import validate
from uniaudio.configs.section import Section
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.tokenizers.protocol import Clip
from uniaudio.tokenize_farm.tokenizers.resources import digest, folder_digest, model_folder, pick_device

if TYPE_CHECKING:
    from transformers import EncodecModel

CODEBOOK_SIZE = 1024  # what the vocabulary holds a level


class EncodecOptions(Section):
    """model: folder or hub name. frames_per_second: what the model makes; must be said where it is not the 50 of every other view."""

    model: str
    revision: str | None = None
    num_codebooks: int = Field(8, ge=1)
    frames_per_second: float = Field(50.0, gt=0)
    device: str = "auto"


class EncodecTokenizer:
    """name `encodec`."""

    name, view = "encodec", "audio"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = validate(EncodecOptions, dict(options), source="tokenizer encodec")
        self._folder = model_folder(self.options.model, needed_for="tokenizer encodec", revision=self.options.revision)
        from transformers import EncodecConfig

        config = EncodecConfig.from_pretrained(self._folder, local_files_only=True)
        self._rate = int(config.sampling_rate)
        self._hop = int(np.prod(config.upsampling_ratios))
        rate = self._rate / self._hop
        if rate != self.options.frames_per_second:
            remedy = f"option frames_per_second: {rate:g} accepts it; phones, semantic and midi stay at 50 frames/s"
            raise UserError("tokenizer encodec: frame rate of the model", seen=rate, allowed=self.options.frames_per_second, remedy=remedy)
        if config.codebook_size != CODEBOOK_SIZE or config.audio_channels != 1:
            seen = f"{config.audio_channels} channels, {config.codebook_size} entries a codebook"
            raise UserError("tokenizer encodec: the model's form", seen=seen, allowed=f"1 channel, {CODEBOOK_SIZE} entries")
        self._bandwidth = rate * np.log2(CODEBOOK_SIZE) * self.options.num_codebooks / 1000
        if not any(abs(self._bandwidth - known) < 1e-6 for known in config.target_bandwidths):
            levels = [known * 1000 / rate / np.log2(CODEBOOK_SIZE) for known in config.target_bandwidths]
            allowed = ", ".join(f"{level:g}" for level in levels)
            raise UserError("tokenizer encodec: num_codebooks", seen=self.options.num_codebooks, allowed=allowed)
        self.version = digest(folder_digest(self._folder), str(self.options.num_codebooks))
        self._model: EncodecModel | None = None

    def _load(self) -> "EncodecModel":
        if self._model is None:
            from transformers import EncodecModel

            model = EncodecModel.from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
            self._model = model.eval().to(pick_device(self.options.device))
        return self._model

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """(T, Q) uint16 for every clip, T = ceil(S / hop) at the model's sample rate."""
        import torch

        model = self._load()
        result: list[np.ndarray | None] = []
        for clip in clips:
            samples = clip.samples if self._rate == SAMPLE_RATE else soxr.resample(clip.samples, SAMPLE_RATE, self._rate)
            batch = torch.from_numpy(np.ascontiguousarray(samples))[None, None].to(model.device)
            with torch.inference_mode():
                codes = model.encode(batch, torch.ones_like(batch[:, 0], dtype=torch.bool), bandwidth=float(self._bandwidth)).audio_codes
            # (chunks, 1, Q, T): one chunk, or several that follow one another
            result.append(torch.cat(list(codes[:, 0]), dim=-1).T.cpu().numpy().astype(np.uint16))
        return result

    def decode(self, codes_TQ: np.ndarray) -> np.ndarray:
        """Codes of the first Q levels -> float32 samples at 16 kHz."""
        import torch

        model = self._load()
        codes = torch.from_numpy(codes_TQ.astype(np.int64)).T[None, None].to(model.device)
        with torch.inference_mode():
            samples = model.decode(codes, [None]).audio_values[0, 0].clamp(-1, 1).cpu().numpy()
        return samples if self._rate == SAMPLE_RATE else soxr.resample(samples, self._rate, SAMPLE_RATE)
