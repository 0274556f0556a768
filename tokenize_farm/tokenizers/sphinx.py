"""Durations of English phones by PocketSphinx's acoustic model (package pocketsphinx, model included).

Each phone is given to the recogniser as a word of its own, so that its own dictionary decides nothing and every phone of ours comes back
with its time. Phone by phone in one pass; the clip before leaves no trace.
"""

from collections.abc import Sequence
from importlib.metadata import version as package_version
from typing import Any

import numpy as np

from uniaudio.tokenize_farm.tokenizers.alignment import Sound
from uniaudio.tokenize_farm.tokenizers.phones import ARPABET
from uniaudio.tokenize_farm.tokenizers.resources import require

_SECONDS_PER_FRAME = 0.01
# wide beams: what is searched is one path, so it costs little and is found where speech is fast
_SEARCH = {"cmn": "batch", "beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-60, "silprob": 0.5, "bestpath": False, "loglevel": "FATAL"}
_SYMBOLS = {phone: symbol.rstrip("0") for symbol, phone in ARPABET.items()}


class SphinxAligner:
    """name `sphinx`."""

    def __init__(self) -> None:
        require("pocketsphinx", needed_for="aligned phones (aligner sphinx)")
        self.version = f"sphinx-{package_version('pocketsphinx')}"
        self._decoder: Any = None

    def serves(self, language: str) -> bool:
        """English only."""
        return language.lower().split("-")[0].split("_")[0] == "en"

    def align(self, words: Sequence[Sequence[str]], samples: np.ndarray) -> list[Sound] | None:
        """The sounds of `words` (phones without marks) in samples (S,); None where one is not English, or the words do not fit."""
        symbols = [[_SYMBOLS.get(phone.lstrip("ˈˌ")) for phone in word] for word in words]
        flat = [symbol for word in symbols for symbol in word]
        if not flat or None in flat:
            return None
        decoder = self._load()
        decoder.reinit_feat()
        decoder.set_align_text(" ".join(f"ph_{symbol}" for symbol in flat))
        data = np.clip(np.round(samples * 32_767), -32_768, 32_767).astype("<i2").tobytes()
        decoder.start_utt()
        try:
            decoder.process_raw(data, full_utt=True)
            decoder.end_utt()
        except RuntimeError:  # its word for "no path through these sounds"
            return None
        found = [part for part in decoder.seg() or () if part.word.startswith("ph_")]
        if len(found) != len(flat):
            return None
        opens = [i == 0 for word in symbols for i in range(len(word))]
        phones = [phone for word in words for phone in word]
        return [
            Sound(phone, part.start_frame * _SECONDS_PER_FRAME, (part.end_frame + 1) * _SECONDS_PER_FRAME, first)
            for phone, part, first in zip(phones, found, opens)
        ]

    def _load(self) -> Any:
        if self._decoder is None:
            from pocketsphinx import Decoder

            self._decoder = Decoder(lm=None, **_SEARCH)
            symbols = sorted(set(_SYMBOLS.values()))
            for symbol in symbols:
                self._decoder.add_word(f"ph_{symbol}", symbol, symbol == symbols[-1])
        return self._decoder
