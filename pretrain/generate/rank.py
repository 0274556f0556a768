"""The best of several candidates: by the model's own score, or by what a recogniser hears."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from uniaudio.errors import UserError

if TYPE_CHECKING:
    from uniaudio.pretrain.generate.api import Clip
    from uniaudio.tokenize_farm.measures.recognition import Recogniser

Rank = Literal["score", "cer"]


class Ranker:
    """Keeps the recogniser, which is loaded at the first use."""

    def __init__(self) -> None:
        self._recogniser: Recogniser | None = None

    def best(self, clips: Sequence["Clip"], rank: Rank, *, text: str | None, language: str | None) -> "Clip":
        """The clip with the highest mean log-probability, or with the fewest wrong characters (the score decides between equals).

        Raises:
            UserError: rank cer without words to compare with. MissingDependency: no recogniser.
        """
        if rank == "score":
            return max(clips, key=lambda clip: clip.score)
        if not text:
            raise UserError("rank cer compares with words", seen="none", remedy='--text "...", or --rank score')
        return min(clips, key=lambda clip: (self._errors(clip.samples, text, language), -clip.score))

    def _errors(self, samples: np.ndarray, text: str, language: str | None) -> int:
        from uniaudio.tokenize_farm.measures.recognition import Recogniser, character_errors

        if self._recogniser is None:
            self._recogniser = Recogniser()
        heard = self._recogniser.transcribe(samples, language.split("-")[0] if language else None) if len(samples) else ""
        return character_errors(text, heard)[0]
