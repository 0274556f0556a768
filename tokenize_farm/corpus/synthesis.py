"""English voices that read a text: flite's (Debian's libflite1, through ctypes) and hibari's (a small network). float32 at 16 kHz.

Owns the two libraries. The packages' links are not unpacked, so flite's parts are loaded by their full names in the order of their needs.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE

Voice = Callable[[str], np.ndarray]  # words -> samples (S,)

FLITE_LIBRARIES = "usr/lib/*/libflite*.so.*"
_PARTS = ("libflite", "libflite_usenglish", "libflite_cmulex")


class _Wave(ctypes.Structure):
    """flite's cst_wave."""

    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


def flite_voice(package: Path, name: str) -> Voice:
    """A voice of flite, for example `slt`; `package` is the unpacked libflite1.

    Raises:
        UserError: the package has no such voice, or this machine cannot load it.
    """
    files = [_library(package, part) for part in (*_PARTS, f"libflite_cmu_us_{name}")]
    try:
        flite, *_, library = [ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL) for file in files]
    except OSError as error:
        raise UserError(f"flite's voice {name} cannot be loaded", seen=error, remedy="leave read-en out with --source") from error
    register = getattr(library, f"register_cmu_us_{name}")
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    flite.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
    flite.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    flite.delete_wave.argtypes = [ctypes.POINTER(_Wave)]
    flite.flite_init()
    voice = register(None)

    def speak(text: str) -> np.ndarray:
        wave = flite.flite_text_to_wave(text.replace("\0", " ").encode("ascii", "replace"), voice)
        try:
            found = wave.contents
            samples = np.ctypeslib.as_array(found.samples, (found.num_samples,)).astype(np.float32) / 32_768
            return soxr.resample(samples, found.sample_rate, SAMPLE_RATE)
        finally:
            flite.delete_wave(wave)

    return speak


def hibari_voice() -> Voice:
    """The voice inside the package hibari-tts.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("hibari") is None:
        raise UserError("the voice of read-en needs hibari-tts, which is not installed", remedy="pip install 'uniaudio[farm]'")
    from hibari import Hibari

    voice = Hibari()
    return lambda text: soxr.resample(np.asarray(voice(text, seed=0), np.float32), 24_000, SAMPLE_RATE)


def _library(package: Path, name: str) -> Path:
    found = sorted(package.glob(f"usr/lib/*/{name}.so.*"))
    if not found:
        raise UserError("flite's package lacks a library", seen=name, remedy="leave read-en out with --source")
    return found[0]
