"""F0 values: pitch in, pitch out."""

import numpy as np
import pytest

from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.f0 import HIGHEST_HZ, LOWEST_HZ, NUM_VALUES, F0Tokenizer, hz_from_values, values_from_hz
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, num_frames


def voice(hz: np.ndarray) -> np.ndarray:
    """A buzz of ten harmonics that follows `hz`, one value a sample."""
    phase = 2 * np.pi * np.cumsum(hz) / 16_000
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 11))).astype(np.float32)


def encode(samples: np.ndarray, kind: str = "speech") -> np.ndarray | None:
    return F0Tokenizer({}).encode([Clip(ManifestRow(id="a", audio_filepath="a", kind=kind), samples)])[0]


def test_values_and_hz_are_inverse() -> None:
    values = np.arange(NUM_VALUES, dtype=np.uint16)
    assert np.array_equal(values_from_hz(hz_from_values(values)), values)
    assert hz_from_values(values)[[0, 1, -1]].tolist() == pytest.approx([0.0, LOWEST_HZ, HIGHEST_HZ])
    assert values_from_hz(np.array([0.0, 10.0, 5_000.0])).tolist() == [0, 1, NUM_VALUES - 1]


@pytest.mark.parametrize("hz", [80.0, 220.0, 700.0])
def test_a_steady_voice_has_its_pitch(hz: float) -> None:
    values = encode(voice(np.full(16_000, hz)))
    assert values.dtype == np.uint16 and len(values) == 50
    assert np.median(values) == values_from_hz(np.array([hz]))[0]


def test_a_glide_is_followed_frame_by_frame() -> None:
    hz = np.geomspace(120, 360, 32_000)
    values = encode(voice(hz))
    middles = hz[160::320]
    inner = slice(5, -5)
    assert np.abs(values[inner].astype(int) - values_from_hz(middles)[inner]).max() <= 1


def test_noise_and_pause_are_unvoiced() -> None:
    samples = np.concatenate([voice(np.full(16_000, 200.0)), np.zeros(16_000, np.float32)])
    assert encode(samples)[55:95].max() == 0


@pytest.mark.parametrize("length", [320, 321, 4_799, 4_800, 16_001])
def test_one_value_a_frame_whatever_the_length(length: int) -> None:
    samples = voice(np.full(length, 150.0))
    assert len(encode(samples)) == num_frames(samples)


def test_sounds_and_music_have_no_pitch_view() -> None:
    assert encode(voice(np.full(16_000, 200.0)), "sound") is None and encode(voice(np.full(16_000, 200.0)), "music") is None
    assert encode(voice(np.full(16_000, 200.0)), "singing") is not None
