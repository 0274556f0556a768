"""Voices that nobody named get names: alike ones the same."""

import json
import logging
from pathlib import Path

import numpy as np
import soundfile
from click.testing import CliRunner

from uniaudio.tokenize_farm.corpus.cli import corpus
from uniaudio.tokenize_farm.corpus.speakers import Voices, name_voices
from uniaudio.tokenize_farm.manifest import read_manifest
from uniaudio.tokenize_farm.measures import speaker


def direction(samples: np.ndarray) -> np.ndarray:
    """Stands for an embedding: how loud the first and the second half are."""
    halves = np.array([np.abs(samples[: len(samples) // 2]).mean(), np.abs(samples[len(samples) // 2 :]).mean()])
    return halves / np.linalg.norm(halves)


def write_manifest(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for name, first, second in (
        ("a", 1.0, 0.1),
        ("b", 0.1, 1.0),
        ("c", 0.9, 0.15),
        ("known", 0.1, 1.0),
        ("d", 0.2, 1.0),
        ("rain", 1.0, 0.1),
    ):
        samples = 0.2 * rng.normal(size=16_000) * np.repeat([first, second], 8_000)
        soundfile.write(folder / f"{name}.wav", samples, 16_000)
        rows.append({"id": name, "audio_filepath": f"{name}.wav", "kind": "sound" if name == "rain" else "speech"})
    rows[3]["speaker"] = "anna"
    rows.append({"id": "gone", "audio_filepath": "gone.wav"})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


def test_alike_clips_share_a_voice_and_named_ones_keep_their_name(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("uniaudio"), "propagate", True)
    found = {row.id: row.speaker for row in name_voices(read_manifest(write_manifest(tmp_path)), direction)}
    one, two = "voice-0001", "voice-0002"
    assert found == {"a": one, "b": two, "c": one, "known": "anna", "d": two, "rain": None, "gone": None}
    assert "gone has no voice: missing" in caplog.text


def test_nearness_decides_how_many_voices_there_are() -> None:
    rng = np.random.default_rng(0)
    embeddings = [part / np.linalg.norm(part) for part in rng.normal(size=(20, 8))]
    assert len({Voices(1.0).name(part) for part in embeddings}) == 1, "each alone: every one begins its own list"
    few, many = Voices(0.0), Voices(0.99)
    assert len({few.name(part) for part in embeddings}) < len({many.name(part) for part in embeddings}) == 20


def test_the_command_writes_a_manifest_with_voices(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(speaker, "embedding", direction)
    command = ["speakers", str(write_manifest(tmp_path)), "--out", str(tmp_path / "voices.jsonl")]
    result = CliRunner().invoke(corpus, command, catch_exceptions=False)
    assert result.exit_code == 0 and "4 clips of 2 voices" in result.output
    assert [row.speaker for row in read_manifest(tmp_path / "voices.jsonl")][:2] == ["voice-0001", "voice-0002"]
