"""View `midi`: the pitch of each frame as one of 138 values, (T,) uint16 at 50 frames/s.

0 is unvoiced; value k in 1..137 is 50 Hz x 2^(40 (k - 1) / 1200): 50 Hz to 1157 Hz in steps of 40 cents. Speech and singing only: the
notes of the row's .mid file (`midi`, relative to the recording's folder), else F0 by WORLD (dio, refined by stonemask) at the middle of
each frame.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from uniaudio.configs.load import validate
from uniaudio.configs.section import Section
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.tokenizers.midi import BadMidi, pitches
from uniaudio.tokenize_farm.tokenizers.protocol import SAMPLES_PER_FRAME, VOICED_KINDS, Clip, num_frames
from uniaudio.tokenize_farm.tokenizers.resources import fit_frames, require

logger = get_logger("uniaudio.tokenizers")
NUM_VALUES = 138
LOWEST_HZ = 50.0
STEP_CENTS = 40.0
HIGHEST_HZ = LOWEST_HZ * 2 ** ((NUM_VALUES - 2) * STEP_CENTS / 1200)
_PACKAGES = {"world": ("pyworld", "pyworld-prebuilt"), "swift": ("swift_f0", "swift-f0")}
_VOICED = 0.5  # confidence of swift-f0
_HALF_FRAME_MS = 1000 * SAMPLES_PER_FRAME / SAMPLE_RATE / 2


def values_from_hz(f0_T: np.ndarray) -> np.ndarray:
    """Hz (0: unvoiced) -> values 0..137, uint16; a pitch beyond the range takes the nearest end."""
    steps = 1 + np.round(1200 / STEP_CENTS * np.log2(np.maximum(f0_T, 1e-3) / LOWEST_HZ))
    return np.where(f0_T > 0, np.clip(steps, 1, NUM_VALUES - 1), 0).astype(np.uint16)


def hz_from_values(values_T: np.ndarray) -> np.ndarray:
    """The middle of each value's bin in Hz, 0 for unvoiced: float64."""
    return np.where(values_T > 0, LOWEST_HZ * 2 ** ((values_T.astype(np.float64) - 1) * STEP_CENTS / 1200), 0.0)


class F0Options(Section):
    """speech: also of speech; no task of the paper asks for it. method: WORLD, or the network of the package swift-f0."""

    speech: bool = True
    method: Literal["world", "swift"] = "world"


class F0Tokenizer:
    """name `f0`."""

    name, view = "f0", "midi"

    def __init__(self, options: Mapping[str, Any]) -> None:
        chosen = validate(F0Options, dict(options), source="tokenizer f0")
        self._kinds = VOICED_KINDS if chosen.speech else ("singing",)
        module, package = _PACKAGES[chosen.method]
        require(module, needed_for=f"tokenizer f0 (package {package})")
        self.version = f"2-{chosen.method}-{package_version(package)}"
        self._hz: Callable[[np.ndarray], np.ndarray] = _world if chosen.method == "world" else _Swift()

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """(T,) uint16 for singing and, unless switched off, speech; else None."""
        return [self._of(clip) if clip.row.kind in self._kinds else None for clip in clips]

    def _of(self, clip: Clip) -> np.ndarray | None:
        if clip.row.midi is None:
            return fit_frames(values_from_hz(self._hz(clip.samples)), num_frames(clip.samples))
        middles = clip.row.offset + (np.arange(num_frames(clip.samples)) + 0.5) * SAMPLES_PER_FRAME / SAMPLE_RATE
        try:
            return values_from_hz(pitches(Path(clip.row.audio_filepath).parent / clip.row.midi, middles))
        except BadMidi as error:
            logger.warning("no notes for %s: %s", clip.row.id, error)
            return None


def _world(samples: np.ndarray) -> np.ndarray:
    """Hz at the middle of each frame, and a little beyond the end; 0 where unvoiced."""
    import pyworld

    padded = np.pad(samples.astype(np.float64), (0, 2 * SAMPLES_PER_FRAME))
    f0, seconds = pyworld.dio(padded, SAMPLE_RATE, f0_floor=LOWEST_HZ, f0_ceil=HIGHEST_HZ, frame_period=_HALF_FRAME_MS)
    f0, seconds = np.ascontiguousarray(f0[1::2]), np.ascontiguousarray(seconds[1::2])  # 10, 30, 50 ms ...: the middles
    return pyworld.stonemask(padded, f0, seconds, SAMPLE_RATE)


class _Swift:
    """The same by swift-f0, whose frames are 16 ms: of each middle the nearest. One thread: the farm has a worker a core."""

    def __init__(self) -> None:
        self._detector: Any = None

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        if self._detector is None:
            from swift_f0 import SwiftF0

            self._detector = SwiftF0(threads=1, spin=False)
        found = self._detector.detect(samples, SAMPLE_RATE, fmin=LOWEST_HZ, fmax=HIGHEST_HZ)
        middles = (np.arange(num_frames(samples)) + 0.5) * SAMPLES_PER_FRAME / SAMPLE_RATE
        last = len(found.timestamps) - 1
        after = np.searchsorted(found.timestamps, middles).clip(min(1, last), last)
        nearest = np.where(middles - found.timestamps[after - 1] <= found.timestamps[after] - middles, after - 1, after)
        return np.where(found.confidence[nearest] >= _VOICED, found.pitch_hz[nearest], 0.0)
