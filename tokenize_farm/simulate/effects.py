"""What can be done to a clip's sound: samples (S,) in, samples (S,) out, float32 at 16 kHz. Drawn, never random by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from uniaudio.configs.simulate import BandLimitConfig, Effect, GapConfig, NoiseConfig, RoomConfig, SpeakersConfig
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.simulate.pool import Pool
from uniaudio.tokenize_farm.simulate.rooms import RoomBank

_FADE = 160  # samples of a fade: 10 ms
_SLOPE = 0.1  # of a low-pass: its transition reaches this share above the cutoff


@dataclass(frozen=True)
class Scene:
    """Where a clip stands: its row and split, and what may be mixed with it."""

    row: ManifestRow
    split: str
    pool: Pool
    rooms: RoomBank


def apply(steps: Sequence[Effect], samples: np.ndarray, draw: Draw, scene: Scene) -> np.ndarray | None:
    """All steps in order, the result no louder than full scale; None where the pool has nothing that fits."""
    for step in steps:
        changed = _apply(step, samples, draw, scene)
        if changed is None:
            return None
        samples = changed
    return limit(samples)


def _apply(step: Effect, samples: np.ndarray, draw: Draw, scene: Scene) -> np.ndarray | None:
    match step:
        case NoiseConfig():
            seconds = len(samples) / SAMPLE_RATE
            found = scene.pool.draw(draw, scene.split, step.kinds, lambda row: row.audio_filepath != scene.row.audio_filepath, seconds)
            return None if found is None else under(samples, found[1], draw.uniform(*step.snr_db))
        case SpeakersConfig():
            return _speakers(step, samples, draw, scene)
        case RoomConfig():
            return scene.rooms.reverberate(step, draw.below(step.rooms), samples)
        case BandLimitConfig():
            return low_pass(samples, draw.uniform(*step.hz))
        case GapConfig():
            return gap(samples, draw.uniform(*step.seconds), draw)
    assert_never(step)


def _speakers(step: SpeakersConfig, samples: np.ndarray, draw: Draw, scene: Scene) -> np.ndarray | None:
    if scene.row.speaker is None:
        return None
    heard = {scene.row.speaker}
    mixed = samples
    for _ in range(step.count[0] + draw.below(step.count[1] - step.count[0] + 1)):
        found = scene.pool.draw(
            draw, scene.split, ("speech",), lambda row: row.speaker is not None and row.speaker not in heard, len(samples) / SAMPLE_RATE
        )
        if found is None:
            return None
        heard.add(str(found[0].speaker))
        mixed = mixed + under(samples, found[1], draw.uniform(*step.sir_db)) - samples
    return mixed


def rms(samples: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def under(samples: np.ndarray, other: np.ndarray, over_db: float) -> np.ndarray:
    """`other` laid under the whole of `samples`, which are `over_db` louder; repeated where it ends."""
    repeated = np.resize(other, len(samples))
    level = rms(repeated)
    if level == 0.0:
        return samples
    return (samples + repeated * (rms(samples) / level * 10 ** (-over_db / 20))).astype(np.float32)


def place(samples: np.ndarray, event: np.ndarray, over_db: float, draw: Draw) -> np.ndarray:
    """`event` heard once somewhere in `samples`, `over_db` louder than they are as a whole; cut where it is longer."""
    event = event[: len(samples)].astype(np.float64)
    fade = min(_FADE, len(event) // 2)
    ramp = np.linspace(0.0, 1.0, fade, endpoint=False)
    event[:fade] *= ramp
    event[len(event) - fade :] *= ramp[::-1]
    start = draw.below(len(samples) - len(event) + 1)
    placed = samples.astype(np.float64)
    placed[start : start + len(event)] += event * (rms(samples) / max(rms(event), 1e-9) * 10 ** (over_db / 20))
    return placed.astype(np.float32)


def low_pass(samples: np.ndarray, hz: float) -> np.ndarray:
    """Nothing above `hz`: a raised-cosine slope in the frequency domain."""
    spectrum = np.fft.rfft(samples.astype(np.float64))
    bins = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    slope = np.clip((bins - hz) / (_SLOPE * hz), 0.0, 1.0)
    return np.fft.irfft(spectrum * (0.5 + 0.5 * np.cos(np.pi * slope)), len(samples)).astype(np.float32)


def gap(samples: np.ndarray, seconds: float, draw: Draw) -> np.ndarray:
    """Silence over `seconds` somewhere inside, at most half the clip."""
    length = min(round(seconds * SAMPLE_RATE), len(samples) // 2)
    start = draw.below(len(samples) - length + 1)
    silenced = samples.copy()
    silenced[start : start + length] = 0.0
    return silenced


def limit(samples: np.ndarray) -> np.ndarray:
    """Scaled down to full scale where it is louder."""
    peak = float(np.abs(samples).max())
    return (samples / peak if peak > 1.0 else samples).astype(np.float32)
