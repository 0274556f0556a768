"""tests/gpu/train_codec.py walks on a CPU: held-out clips, parts of a pack, training, a judged table, weights in pieces."""

import importlib.util
from pathlib import Path

import torch
from click.testing import CliRunner

from tests.unit.tokenize_farm.codec.test_cli import wave
from uniaudio.tokenize_farm.audio import save_wav
from uniaudio.tokenize_farm.codec.data import pack_recordings
from uniaudio.tokenize_farm.codec.weights import load_codec
from uniaudio.tokenize_farm.manifest import ManifestRow, write_manifest

SCRIPT = Path(__file__).resolve().parents[3] / "gpu" / "train_codec.py"


def test_a_second_call_goes_on_where_the_first_stopped(tmp_path):
    spec = importlib.util.spec_from_file_location("train_codec", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*arguments: object) -> str:
        return CliRunner().invoke(script.cli, [str(a) for a in arguments], catch_exceptions=False).output

    rows = []
    for i, (kind, split) in enumerate((("speech", "train"), ("speech", "valid"), ("sound", "valid"))):
        save_wav(tmp_path / f"{i}.wav", wave(i, 40_000))
        source = script.UNSEEN_SPEAKER if kind == "speech" and split == "valid" else "s"
        rows.append(ManifestRow(id=str(i), audio_filepath=str(tmp_path / f"{i}.wav"), duration=2.5, kind=kind, split=split, source=source))
    write_manifest(tmp_path / "manifest.jsonl", rows)
    assert "1 clips of speech, 1 others" in run("held-out", tmp_path / "manifest.jsonl", "--out", tmp_path / "held_out", "--clips", 3)
    pack_recordings(rows, tmp_path / "parts")
    (tmp_path / "late").mkdir()
    (tmp_path / "parts" / "part-000.bin").rename(tmp_path / "late" / "part-000.bin")
    assert "missing: part-000.bin" in run("collect", tmp_path / "parts", "--pack", tmp_path / "pack")
    assert "whole" in run("collect", tmp_path / "late", "--pack", tmp_path / "pack")
    shape = {"width": 16, "fine_width": 16, "num_codebooks": 8, "codebook_size": 8}
    schedule = ["train.batch_size=2", "train.max_steps=3", "train.discriminate_from=1", "data.segment_frames=12"]
    settings = [*(f"model.{key}={value}" for key, value in shape.items()), *schedule]
    folders = ["--pack", tmp_path / "pack", "--held-out", tmp_path / "held_out", "--state", tmp_path / "state", "--out", tmp_path / "out"]
    call = ["train", *folders, "--config", "tiny_cpu"]
    first = run(*call, "--seconds", 1e-3, *settings)
    second = run(*call, "--seconds", 100, *settings)
    steps = [line.split("|")[1].strip() for line in second.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert sorted(set(steps)) == ["0", "1", "3"] and first.count("| 1 |")
    pieces = sorted((tmp_path / "out").glob("codec.safetensors.*"))
    (tmp_path / "joined.safetensors").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    assert load_codec(tmp_path / "joined.safetensors").encode(torch.zeros(1, 640)).shape == (1, 2, 8)
