"""How a voice sounds, in words: pitch, speed and tone of a clip, as the row says or as measured, put into a phrase."""

import numpy as np

from uniaudio.configs.simulate import InstructRecipe
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.tokenizers.resources import require

_PITCHES = ((100.0, "very low"), (140.0, "low"), (190.0, "medium"), (250.0, "high"), (float("inf"), "very high"))  # below Hz
_SPEEDS = ((7.0, "very slowly"), (11.0, "slowly"), (16.0, "at a normal pace"), (20.0, "quickly"), (float("inf"), "very quickly"))
_TONES = ((1.2, "monotone"), (3.5, "calm"), (float("inf"), "lively"))  # below semitones of spread
_VOICES = {"male": "man", "female": "woman", "child": "child"}
_FRAME_MS = 10.0


def instruction(recipe: InstructRecipe, row: ManifestRow, samples: np.ndarray, draw: Draw) -> str | None:
    """The row's own instruction, or a phrase with the words that fit; None where nothing is voiced or no text says how fast it is."""
    if row.instruction:
        return row.instruction
    words = {name: str(row.custom[name]) for name in ("voice", "pitch", "speed", "tone") if row.custom.get(name)}
    words.setdefault("voice", _VOICES.get(str(row.custom.get("gender", "")).lower(), "voice"))
    if not {"pitch", "speed", "tone"} <= set(words):
        words = measured(row.text, samples) | words
    phrase = draw.choose(recipe.phrases)
    for name, value in words.items():
        phrase = phrase.replace("{" + name + "}", value)
    return None if "{" in phrase else phrase


def measured(text: str | None, samples: np.ndarray) -> dict[str, str]:
    """Words for pitch and tone (median and spread of F0) and for speed (letters a second between first and last voiced frame)."""
    require("pyworld", needed_for="simulate.instruct (package pyworld-prebuilt)")
    import pyworld

    f0, _ = pyworld.dio(
        samples.astype(np.float64), SAMPLE_RATE, f0_floor=60.0, f0_ceil=600.0, frame_period=_FRAME_MS, channels_in_octave=1.0
    )
    voiced = np.flatnonzero(f0)
    if len(voiced) < 10:
        return {}
    words = {"pitch": _word(_PITCHES, float(np.median(f0[voiced]))), "tone": _word(_TONES, 12 * float(np.log2(f0[voiced]).std()))}
    letters = sum(letter.isalpha() for letter in text or "")
    if letters:
        words["speed"] = _word(_SPEEDS, letters / ((voiced[-1] - voiced[0] + 1) * _FRAME_MS / 1000))
    return words


def _word(table: tuple[tuple[float, str], ...], value: float) -> str:
    return next(word for bound, word in table if value < bound)
