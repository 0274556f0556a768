"""espeak-ng by ctypes, from the shared library inside the package espeakng-loader: text -> IPA units, text -> speech. Not thread-safe.

Owns the C calls and nothing of the inventory. The library is loaded at the first call of a process.
"""

import ctypes
import re
from functools import cache
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np
import soxr

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.tokenizers.resources import require

_SYNCHRONOUS, _UTF8, _IPA = 2, 1, 0x02
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_SYNTHESIS_RATE = 22_050
_ON_SAMPLES = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_SEPARATOR = "_"  # put between phonemes
_LANGUAGE_SWITCH = re.compile(r"\([a-z\-]+\)")
# tags that espeak-ng names otherwise
_VOICES = {"en": "en-us", "fr": "fr-fr", "zh": "cmn", "zh-cn": "cmn", "zh-tw": "cmn", "no": "nb", "jp": "ja"}


def espeak_version() -> str:
    """Raises MissingDependency where the package is not installed."""
    require("espeakng_loader", needed_for="tokenizer phones (package espeakng-loader)")
    return package_version("espeakng-loader")


@cache
def _library() -> ctypes.CDLL:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    if library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0) < 0:
        remedy = "pip install --force-reinstall espeakng-loader"
        raise UserError("espeak-ng cannot start", seen=espeakng_loader.get_data_path(), remedy=remedy)
    return library


def knows_language(language: str) -> bool:
    """Whether espeak-ng has a voice for a language tag (`cs`, `pt-BR`, `en_US`)."""
    return _voice(language) is not None


@cache
def _voice(language: str) -> bytes | None:
    tag = language.lower().replace("_", "-")
    for name in (_VOICES.get(tag), tag, _VOICES.get(tag.split("-")[0]), tag.split("-")[0]):
        if name and _library().espeak_SetVoiceByName(name.encode()) == 0:
            return name.encode()
    return None


def words_to_ipa(text: str, language: str) -> list[list[str]]:
    """Words of `text` (no punctuation in it) as lists of IPA units, stress marks in front of the unit that carries them.

    Raises:
        ValueError: a language that espeak-ng has no voice for; ask `knows_language` before.
    """
    voice = _voice(language)
    if voice is None:
        raise ValueError(f"espeak-ng has no voice for {language!r}")
    library = _library()
    library.espeak_SetVoiceByName(voice)
    rest = ctypes.c_char_p(text.replace("\0", " ").encode())
    words: list[list[str]] = []
    while rest.value:  # one clause a call; the pointer is NULL behind the last
        spoken = library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA | ord(_SEPARATOR) << 8).decode()
        for word in _LANGUAGE_SWITCH.sub(_SEPARATOR, spoken).split():
            words.append([unit for unit in word.split(_SEPARATOR) if unit])
    return [word for word in words if word]


def speak(text: str, language: str, *, variant: str = "", words_per_minute: int = 175, pitch: int = 50) -> np.ndarray:
    """Speech, float32 (S,) at 16 kHz. variant: a voice of espeak-ng (`f2`, `m3`); pitch: 0 to 99.

    Raises:
        UserError: a language or a variant that it does not know.
    """
    import espeakng_loader

    voice, library = _voice(language), _library()
    known = not variant or (Path(espeakng_loader.get_data_path()) / "voices/!v" / variant).is_file()  # it would say nothing
    if voice is None or not known or library.espeak_SetVoiceByName(voice + (f"+{variant}".encode() if variant else b"")) != 0:
        raise UserError(
            "espeak-ng has no such voice", seen=f"{language} {variant}".strip(), remedy="a language tag, and f1 to f5 or m1 to m8"
        )
    parts: list[np.ndarray] = []

    def collect(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int) -> int:
        if samples and count:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _ON_SAMPLES(collect)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    data = text.replace("\0", " ").encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
    library.espeak_SetSynthCallback(_ON_SAMPLES(0))
    samples = np.concatenate([np.zeros(0, np.int16), *parts]).astype(np.float32) / 32_768
    return soxr.resample(samples, _SYNTHESIS_RATE, SAMPLE_RATE)
