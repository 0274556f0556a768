"""View `text` by the paper's encoder: the frozen encoder of T5 v1.1 base, (L, 768) float16, at most 100 tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from uniaudio.configs.load import validate
from uniaudio.configs.section import Section
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, description
from uniaudio.tokenize_farm.tokenizers.resources import digest, folder_digest, model_folder
from uniaudio.tokenize_farm.tokenizers.text import MAX_TOKENS, StateEncoder


class T5Options(Section):
    """model: a local folder or a name on the hub (paper: google/t5-v1_1-base)."""

    model: str = "google/t5-v1_1-base"
    revision: str | None = None
    max_tokens: int = Field(MAX_TOKENS, ge=1, le=512)
    device: str = "auto"


class T5Tokenizer:
    """name `t5`."""

    name, view = "t5", "text"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = validate(T5Options, dict(options), source="tokenizer t5")
        folder = model_folder(self.options.model, needed_for="tokenizer t5", revision=self.options.revision)
        self.version = digest(folder_digest(folder), str(self.options.max_tokens))
        self._encoder = StateEncoder(folder, model_class="T5EncoderModel", max_tokens=self.options.max_tokens, device=self.options.device)

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """(L, C) float16 (C = 768 for the base model), None for a clip without description."""
        return [self._encoder(text) if (text := description(clip.row)) else None for clip in clips]

    def encode_text(self, text: str) -> np.ndarray:
        """(L, C) float16 of any text."""
        return self._encoder(text)
