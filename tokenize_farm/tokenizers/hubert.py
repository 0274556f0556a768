"""View `semantic` as in the paper: HuBERT base, layer 9, 500 k-means units, repeats kept; (T,) uint16 at 50 frames/s."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from uniaudio.configs.load import validate
from uniaudio.configs.section import Section
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.tokenizers.protocol import SAMPLES_PER_FRAME, VOICED_KINDS, Clip, num_frames
from uniaudio.tokenize_farm.tokenizers.resources import UnitCodebook, digest, fit_frames, folder_digest, model_folder, pick_device

if TYPE_CHECKING:
    from transformers import HubertModel

RECEPTIVE_FIELD = 400  # samples of a frame of the convolutional front end, which steps by 320
_MARGIN = (RECEPTIVE_FIELD - SAMPLES_PER_FRAME) // 2


class HubertOptions(Section):
    """model: folder or hub name. centroids: safetensors file with one tensor `centroids` (units, width)."""

    model: str = "facebook/hubert-base-ls960"
    revision: str | None = None
    centroids: str
    layer: int = Field(9, ge=1)
    device: str = "auto"


class HubertTokenizer:
    """name `hubert`."""

    name, view = "hubert", "semantic"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = validate(HubertOptions, dict(options), source="tokenizer hubert")
        self._folder = model_folder(self.options.model, needed_for="tokenizer hubert", revision=self.options.revision)
        centroids = Path(self.options.centroids).expanduser()
        self._codebook = UnitCodebook(centroids, features=f"hubert-layer-{self.options.layer}")
        self.version = digest(folder_digest(self._folder), centroids, str(self.options.layer))
        self._model: HubertModel | None = None

    def _load(self) -> "HubertModel":
        if self._model is None:
            from transformers import HubertModel

            model = HubertModel.from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
            if self.options.layer > model.config.num_hidden_layers:
                raise UserError("tokenizer hubert: layer", seen=self.options.layer, allowed=f"1..{model.config.num_hidden_layers}")
            self._model = model.eval().to(pick_device(self.options.device))
        return self._model

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """(T,) uint16 for speech and singing, else None."""
        return [self._units(clip.samples) if clip.row.kind in VOICED_KINDS else None for clip in clips]

    def _units(self, samples: np.ndarray) -> np.ndarray:
        import torch

        model = self._load()
        frames = num_frames(samples)
        # margins so that frame t is centred where the codec's is, and no frame is missing at the end
        end = frames * SAMPLES_PER_FRAME - len(samples) + _MARGIN
        if model.config.feat_extract_norm == "layer":  # such models were trained on samples of unit variance; group norm scales by itself
            samples = (samples - samples.mean()) / (samples.std() + 1e-7)
        padded = torch.from_numpy(np.pad(samples, (_MARGIN, end))).to(model.device)
        with torch.inference_mode():
            states = model(padded[None], output_hidden_states=True).hidden_states[self.options.layer][0]
        return fit_frames(self._codebook.nearest(states.float().cpu().numpy()), frames)
