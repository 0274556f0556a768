"""load_audio: any rate and channels work; everything unusable is a BadAudio with its reason."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from uniaudio.tokenize_farm.audio import MAX_SECONDS, REASONS, BadAudio, audio_seconds, load_audio, save_wav


def tone(seconds: float, rate: int, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def reason(path: Path, **options: float) -> str:
    with pytest.raises(BadAudio) as caught:
        load_audio(path, **options)
    assert str(path) in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_give_the_same_tone(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(1.0, rate)] * channels, axis=1), rate)
    samples = load_audio(path)
    assert samples.dtype == np.float32 and samples.shape == (16_000,)
    np.testing.assert_allclose(samples[800:-800], tone(1.0, 16_000)[800:-800], atol=2e-3)


@pytest.mark.parametrize("extension", ["flac", "ogg", "mp3"])
def test_compressed_formats_are_read(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    soundfile.write(path, tone(1.0, 16_000), 16_000)
    spectrum = np.abs(np.fft.rfft(load_audio(path)[:16_000]))
    assert spectrum.argmax() == pytest.approx(440, abs=1)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(0.1, 16_000), np.zeros(1_600)], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), tone(0.1, 16_000) / 2, atol=1e-6)


def test_long_files_read_by_blocks_equal_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, 44_100, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav")
    monkeypatch.setattr("uniaudio.tokenize_farm.audio._BLOCK_VALUES", 1_000)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), whole, atol=1e-6)


def test_offset_and_duration_cut_the_window(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav", offset=0.25, duration=0.5), samples[4_000:12_000])
    assert len(load_audio(tmp_path / "a.wav", duration=1.03)) == 16_000, "a duration rounded up is forgiven"
    assert reason(tmp_path / "a.wav", duration=1.2) == "truncated"
    assert reason(tmp_path / "a.wav", offset=1.0) == "truncated"


@pytest.mark.parametrize("options", [{"offset": -1.0}, {"duration": 0.0}, {"duration": float("nan")}, {"offset": float("inf")}])
def test_impossible_windows_are_refused(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="offset must be"):
        load_audio(tmp_path / "a.wav", **options)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.wav") == "missing"
    assert reason(tmp_path) == "missing"


def test_zero_bytes_and_zero_samples(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert reason(tmp_path / "a.wav") == "empty"
    soundfile.write(tmp_path / "b.wav", np.zeros(0), 16_000)
    assert reason(tmp_path / "b.wav") == "empty"


@pytest.mark.parametrize("name", ["a.wav", "a.ogg", "a.raw", "a.txt"])
def test_text_named_as_audio(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is a letter, not a sound\n" * 100)
    assert reason(tmp_path / name) == "not_audio"


def test_an_absurd_rate(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0, 16_000), 10)
    assert reason(tmp_path / "a.wav") == "not_audio"


@pytest.mark.parametrize("extension", ["ogg", "wav", "flac"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated_files(tmp_path: Path, extension: str, kept: float) -> None:
    path = tmp_path / f"a.{extension}"
    soundfile.write(path, np.random.default_rng(2).uniform(-0.5, 0.5, 48_000), 16_000)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert reason(path) == "truncated"


def test_a_wav_cut_inside_its_header(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0, 16_000), 16_000)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:30])
    assert reason(tmp_path / "a.wav") == "truncated"


def test_a_wav_of_a_streaming_writer_has_an_open_size_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0, 16_000), 16_000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert len(load_audio(path)) == 16_000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_nan_and_infinity(tmp_path: Path, bad: float, rate: int) -> None:
    samples = tone(0.5, rate)
    samples[100] = bad
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    assert reason(tmp_path / "a.wav") == "nan"


@pytest.mark.parametrize("count", [1, 100, 319])
def test_clips_below_one_frame(tmp_path: Path, count: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(count, 0.5), 16_000)
    assert reason(tmp_path / "a.wav") == "too_short"


def test_one_frame_is_enough(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(320, 0.5), 16_000)
    assert len(load_audio(tmp_path / "a.wav")) == 320


def test_too_long_is_refused_before_reading_but_a_window_of_it_works(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(3.0, 8_000), 8_000)
    assert reason(path, max_seconds=2.0) == "too_long"
    assert len(load_audio(path, offset=1.0, duration=1.5, max_seconds=2.0)) == 24_000
    assert reason(path, duration=MAX_SECONDS + 1) == "too_long"


def test_digital_silence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    assert reason(tmp_path / "a.wav") == "silent"


def test_channels_of_opposite_phase_are_told_from_silence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(0.5, 16_000), -tone(0.5, 16_000)], axis=1), 16_000)
    for options in ({}, {"offset": 0.1, "duration": 0.2}):
        with pytest.raises(BadAudio, match=r"silent: .*its 2 channels cancel each other out \(opposite phase\)"):
            load_audio(tmp_path / "a.wav", **options)
    soundfile.write(tmp_path / "b.wav", np.zeros((8_000, 2)), 16_000)
    with pytest.raises(BadAudio, match="no sample above one step"):
        load_audio(tmp_path / "b.wav")


def test_g722_decodes_to_the_tone_that_was_encoded(tmp_path: Path) -> None:
    from G722 import G722

    path = tmp_path / "a.g722"
    pcm = (tone(1.0, 16_000) * 32_767).astype(int).tolist()
    path.write_bytes(G722(16_000, 64_000).encode(pcm))
    samples = load_audio(path)
    assert samples.shape == (16_000,) and audio_seconds(path) == 1.0
    delay = 22  # of the codec's two filter banks, in samples
    np.testing.assert_allclose(samples[delay + 500 :], tone(1.0, 16_000)[500:-delay], atol=0.03)
    np.testing.assert_array_equal(load_audio(path, offset=0.5, duration=0.25), samples[8_000:12_000])
    assert len(load_audio(path, sample_rate=8_000)) == 8_000
    assert reason(path, max_seconds=0.5) == "too_long"


def test_save_wav_and_load_give_the_samples_back(tmp_path: Path) -> None:
    samples = np.array([0.0, 0.5, -1.0, 2.0, -2.0] * 100, dtype=np.float32)
    save_wav(tmp_path / "a.wav", samples)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), np.clip(samples, -1, 32_767 / 32_768), atol=1e-6)
    assert audio_seconds(tmp_path / "a.wav") == 500 / 16_000
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("samples", [np.zeros((2, 3)), np.array([np.nan])])
def test_save_wav_refuses_what_is_no_sound(tmp_path: Path, samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite samples of one dimension"):
        save_wav(tmp_path / "a.wav", samples)


def test_bad_audio_crosses_a_process_border_and_knows_its_reasons() -> None:
    error = pickle.loads(pickle.dumps(BadAudio("nan", "x.wav")))
    assert (error.reason, error.detail) == ("nan", "x.wav")
    assert "silent" in REASONS
    with pytest.raises(ValueError, match="unknown reason"):
        BadAudio("ugly", "")
