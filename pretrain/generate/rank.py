"""The best of several candidates: by the model's own score, by what a recogniser hears, or by whose voice it is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from uniaudio.errors import UserError
from uniaudio.pretrain.generate.inputs import Inputs
from uniaudio.tokenize_farm.audio import load_audio

if TYPE_CHECKING:
    from uniaudio.pretrain.generate.api import Clip
    from uniaudio.tokenize_farm.measures.recognition import Recogniser

Rank = Literal["score", "cer", "sim"]
COMPARES_WITH: dict[Rank, tuple[str, ...]] = {"score": (), "cer": ("text", "language"), "sim": ("prompt",)}  # fields of Inputs


def require_comparable(rank: Rank, inputs: Inputs) -> None:
    """UserError for cer without words, or sim without a prompt to compare with."""
    if rank == "sim" and inputs.prompt is None:
        raise UserError("rank sim compares with the speaker's recording", seen="none", remedy="--prompt FILE.wav, or --rank score")
    if rank == "cer" and not inputs.text:
        raise UserError("rank cer compares with words", seen="none", remedy='--text "...", or --rank score')


class Ranker:
    """Keeps the recogniser, which is loaded at the first use."""

    def __init__(self) -> None:
        self._recogniser: Recogniser | None = None

    def best(self, clips: Sequence["Clip"], rank: Rank, inputs: Inputs) -> "Clip":
        """The clip with the highest mean log-probability (score), the fewest wrong characters (cer), or the voice most like the prompt's
        (sim); the score decides between equals.

        Raises:
            UserError: cer without words, or sim without a prompt to compare with; no package for it.
        """
        if rank == "score":
            return max(clips, key=lambda clip: clip.score)
        require_comparable(rank, inputs)
        if rank == "sim":
            assert inputs.prompt is not None
            prompt = load_audio(inputs.prompt)
            return max(clips, key=lambda clip: (self._likeness(clip.samples, prompt), clip.score))
        return min(clips, key=lambda clip: (self._errors(clip.samples, inputs.text or "", inputs.language), -clip.score))

    def _errors(self, samples: np.ndarray, text: str, language: str | None) -> int:
        from uniaudio.tokenize_farm.measures.recognition import Recogniser, character_errors

        if self._recogniser is None:
            self._recogniser = Recogniser()
        heard = self._recogniser.transcribe(samples, language.split("-")[0] if language else None) if len(samples) else ""
        return character_errors(text, heard)[0]

    def _likeness(self, samples: np.ndarray, prompt: np.ndarray) -> float:
        from uniaudio.tokenize_farm.measures.speaker import similarity

        return similarity(samples, prompt) if len(samples) else -1.0
