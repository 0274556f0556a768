"""F0 values: pitch in, pitch out."""

import logging
from pathlib import Path

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


@pytest.mark.parametrize("method", ["world", "swift"])
@pytest.mark.parametrize("hz", [80.0, 220.0, 700.0])
def test_a_steady_voice_has_its_pitch(hz: float, method: str) -> None:
    row = ManifestRow(id="a", audio_filepath="a")
    values = F0Tokenizer({"method": method}).encode([Clip(row, voice(np.full(16_000, hz)))])[0]
    assert values.dtype == np.uint16 and len(values) == 50
    assert np.median(values) == values_from_hz(np.array([hz]))[0]
    assert len(F0Tokenizer({"method": method}).encode([Clip(row, voice(np.full(330, hz)))])[0]) == 2


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


def write_midi(path: Path) -> None:
    """Half a second of A3, at twice the tempo a quarter of rest and half a second of A4 under a drum."""
    import mido

    notes = mido.MidiTrack()
    notes += [mido.Message("note_on", note=57, velocity=64, time=0), mido.Message("note_off", note=57, time=480)]
    notes += [mido.MetaMessage("set_tempo", tempo=250_000, time=0), mido.Message("note_on", note=69, velocity=64, time=480)]
    notes += [mido.Message("note_on", note=40, velocity=64, channel=9, time=0), mido.Message("note_on", note=69, velocity=0, time=960)]
    file = mido.MidiFile(ticks_per_beat=480)
    file.tracks.append(notes)
    file.save(path)


def test_notes_of_a_midi_file_count_before_the_sound(tmp_path: Path) -> None:
    write_midi(tmp_path / "song.mid")
    row = ManifestRow(id="a", audio_filepath=str(tmp_path / "a.wav"), kind="singing", midi="song.mid")
    tokenizer, samples = F0Tokenizer({}), np.zeros(int(1.5 * 16_000), np.float32)
    [values] = tokenizer.encode([Clip(row, samples)])
    np.testing.assert_allclose(hz_from_values(values), [220.0] * 25 + [0.0] * 12 + [440.0] * 25 + [0.0] * 13, rtol=0.012)
    [later] = tokenizer.encode([Clip(row.model_copy(update={"offset": 0.5}), samples[:16_000])])
    np.testing.assert_array_equal(later, values[25:])
    assert tokenizer.encode([Clip(row.model_copy(update={"kind": "music"}), samples)]) == [None]
    assert F0Tokenizer({"speech": False}).encode([Clip(row.model_copy(update={"kind": "speech"}), samples)]) == [None]


def test_a_bad_midi_file_leaves_the_clip_without_the_view(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("uniaudio"), "propagate", True)
    (tmp_path / "bad.mid").write_bytes(b"MThd is not enough")
    for name in ("bad.mid", "none.mid"):
        row = ManifestRow(id="a", audio_filepath=str(tmp_path / "a.wav"), kind="singing", midi=name)
        assert F0Tokenizer({}).encode([Clip(row, np.zeros(16_000, np.float32))]) == [None]
        assert f"{name} cannot be read" in caplog.text
