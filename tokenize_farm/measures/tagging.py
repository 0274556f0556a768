"""What a sound is, by models of the user's own: KL between the labels of two clips, likeness of a clip to a text.

No weights of such models can be had from package registries, so there is no default: folders in transformers' form are given. The paper's
KL is by PANNs, its texts are compared by CLAP; any classifier of sounds serves (AST, say), and figures compare by one model only.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.measures.packages import need


class Classifier:
    """A classifier of sounds (AutoModelForAudioClassification with its feature extractor) in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return _load(self._folder, "AutoFeatureExtractor", "AutoModelForAudioClassification", option="--classifier")

    @torch.inference_mode()
    def log_probabilities(self, samples: np.ndarray) -> torch.Tensor:
        """(labels,) of samples (S,) at 16 kHz, as a softmax."""
        extractor, model = self._loaded
        rate = extractor.sampling_rate
        inputs = extractor(_at(samples, rate), sampling_rate=rate, return_tensors="pt")
        return model(**inputs).logits[0].double().log_softmax(dim=-1)

    def divergence(self, reference: np.ndarray, made: np.ndarray) -> float:
        """KL(labels of the reference || labels of what was made), nats; 0 for the same clip."""
        wanted, found = self.log_probabilities(reference), self.log_probabilities(made)
        return float((wanted.exp() * (wanted - found)).sum())


class TextAudio:
    """A joint model of text and sound (ClapModel with its processor) in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return _load(self._folder, "ClapProcessor", "ClapModel", option="--clap")

    @torch.inference_mode()
    def similarity(self, text: str, samples: np.ndarray) -> float:
        """Cosine of the embeddings of a text and of samples (S,) at 16 kHz; of a long clip as much as the model takes."""
        processor, model = self._loaded
        extractor = processor.feature_extractor
        audio = _at(samples, extractor.sampling_rate)[: extractor.nb_max_samples]
        made = model(**processor(text=[text], audio=[audio], sampling_rate=extractor.sampling_rate, return_tensors="pt", padding=True))
        return float(torch.nn.functional.cosine_similarity(made.text_embeds, made.audio_embeds)[0])


def _load(folder: Path, processor: str, model: str, *, option: str) -> tuple[Any, Any]:
    transformers = need("transformers", needed_for=option)
    try:
        parts = [getattr(transformers, name).from_pretrained(folder, local_files_only=True) for name in (processor, model)]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{option}: not a model of that kind", seen=f"{folder}: {reason}", allowed=f"a folder that {model} loads"
        ) from error
    return parts[0], parts[1].eval()


def _at(samples: np.ndarray, rate: int) -> np.ndarray:
    return soxr.resample(samples, SAMPLE_RATE, rate).astype(np.float32) if rate != SAMPLE_RATE else samples.astype(np.float32)
