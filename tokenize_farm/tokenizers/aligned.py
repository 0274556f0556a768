"""Views `phone.aligned` and `phone.singing`: phones with the frames they last, (P, 2) uint16, whose frames add up to the clip's.

Times come from the row's own file (`alignment`: a TextGrid or CTM, relative to the recording's folder), else from an aligner. A clip that
cannot be aligned lacks the view, and with it the tasks that need it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from uniaudio.configs.load import validate
from uniaudio.configs.section import Section
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.schema import UNKNOWN_PHONE
from uniaudio.tokenize_farm.tokenizers import sing_phones
from uniaudio.tokenize_farm.tokenizers.alignment import BadAlignment, Sound, frames_of, read_sounds, share
from uniaudio.tokenize_farm.tokenizers.ctc import CtcAligner
from uniaudio.tokenize_farm.tokenizers.espeak import knows_language
from uniaudio.tokenize_farm.tokenizers.phones import PhoneTokenizer, inventory, label_to_phone, text_to_phones, words_of
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, num_frames
from uniaudio.tokenize_farm.tokenizers.resources import digest
from uniaudio.tokenize_farm.tokenizers.sphinx import SphinxAligner

logger = get_logger("uniaudio.tokenizers")


class AlignedOptions(Section):
    """aligner: for rows without `alignment`. sphinx: English by PocketSphinx; ctc: a letter recogniser in `model`, a folder or hub name."""

    aligner: Literal["none", "sphinx", "ctc"] = "sphinx"
    model: str | None = None
    device: str = "auto"
    default_language: str = "en"

    @model_validator(mode="after")
    def _consistent(self) -> "AlignedOptions":
        if (self.aligner == "ctc") != (self.model is not None):
            raise ValueError("option model belongs to aligner ctc, which needs it: a folder with a CTC model, or its name on the hub")
        return self


class AlignedPhoneTokenizer:
    """name `aligned_phones`: speech, ids of the inventory of `phones`."""

    name, view, kind = "aligned_phones", "phone.aligned", "speech"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = validate(AlignedOptions, dict(options), source=f"tokenizer {self.name}")
        self._sphinx = SphinxAligner() if self.options.aligner == "sphinx" else None
        self._ctc = CtcAligner(self.options.model, self.options.device) if self.options.model else None
        aligner = self._sphinx or self._ctc
        phones = PhoneTokenizer({"default_language": self.options.default_language})
        self.version = f"1-{phones.version}-{aligner.version if aligner else 'given'}{self._inventory_version()}"

    def _inventory_version(self) -> str:
        return ""

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """(P, 2) uint16 for clips of the kind whose words and times are known."""
        return [self._rows(clip) if clip.row.kind == self.kind else None for clip in clips]

    def _rows(self, clip: Clip) -> np.ndarray | None:
        sounds = self._sounds(clip)
        return None if not sounds else self.ids(frames_of(sounds, num_frames(clip.samples)))

    def ids(self, rows: Sequence[tuple[str, int]]) -> np.ndarray:
        """(name, frames) pairs -> (P, 2) uint16; what the inventory lacks is `<unk>`."""
        table = inventory()
        return np.array([(table.get(name, UNKNOWN_PHONE), frames) for name, frames in rows], dtype=np.uint16)

    def _sounds(self, clip: Clip) -> list[Sound] | None:
        language = clip.row.language or self.options.default_language
        if not knows_language(language):
            return None
        if given := clip.row.custom.get("alignment"):
            path = Path(clip.row.audio_filepath).parent / str(given)
            try:
                return read_sounds(clip.row, path, name_of=label_to_phone, spell=partial(_spell, language=language))
            except BadAlignment as error:
                logger.warning("no aligned phones for %s: %s", clip.row.id, error)
                return None
        if not clip.row.text:
            return None
        if self._sphinx and self._sphinx.serves(language):
            return self._sphinx.align(words_of(text_to_phones(clip.row.text, language)), clip.samples)
        return self._by_letters(clip.row.text, language, clip.samples) if self._ctc else None

    def _by_letters(self, text: str, language: str, samples: np.ndarray) -> list[Sound] | None:
        assert self._ctc is not None
        letters = ["".join(mark for mark in word.lower() if mark.isalpha() or mark == "'") for word in text.split()]
        words = [word for word in letters if word]
        times = self._ctc.word_times(words, samples)
        if times is None:
            return None
        return [sound for word, (start, end) in zip(words, times) for sound in share(_spell(word, language=language), start, end)]


class SingPhoneTokenizer(AlignedPhoneTokenizer):
    """name `sing_phones`: singing, ids of the small inventory that singing has in the vocabulary; words are not parted."""

    name, view, kind = "sing_phones", "phone.singing", "singing"

    def _inventory_version(self) -> str:
        return f"-{digest(sing_phones.INVENTORY)}"

    def ids(self, rows: Sequence[tuple[str, int]]) -> np.ndarray:
        """(name, frames) pairs -> (P, 2) uint16."""
        kept = [(sing_phones.id_of(name), frames) for name, frames in rows if name != "<wb>"]
        return np.array(kept, dtype=np.uint16)


def _spell(word: str, *, language: str) -> list[str]:
    """Phones of one word; `<unk>` for what nobody can say."""
    return [phone for word_phones in words_of(text_to_phones(word, language)) for phone in word_phones] or ["<unk>"]
