"""The whole way by the command line: a folder of recordings -> farm -> training in two processes -> a wav, and every joint on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import command_line

pytestmark = pytest.mark.slow

FARM = """
manifest: {folder}/manifest.jsonl
output_dir: {folder}/shards
tokenizers:
  audio: {{name: codec}}
  phone: {{name: phones}}
clips_per_unit: 4
workers: 1
"""
TINY = [
    "model.width=32",
    "model.num_heads=2",
    "model.ffn_width=64",
    "model.global_layers=2",
    "model.local_layers=1",
    "model.max_positions=512",
    "data.tasks=[tts]",
    "data.frames_per_row=256",
    "data.rows_per_micro_batch=1",
    "train.steps=4",
    "train.save_every=2",
    "train.evaluate_batches=1",
    "train.log_every=1",
]


def uniaudio(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "uniaudio", *words], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def record(folder: Path, number: int) -> None:
    """A voiced-like tone with a moving pitch, and the words of its clip beside it."""
    time = np.arange(16_000 + 4_000 * (number % 3)) / 16_000
    phase = 2 * np.pi * np.cumsum(110 + 10 * number + 30 * np.sin(2 * np.pi * time)) / 16_000
    samples = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 8)) * 0.2
    soundfile.write(folder / f"clip{number}.wav", samples, 16_000)
    (folder / f"clip{number}.txt").write_text(f"this is clip number {number}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("walk")
    voices = root / "recordings" / "anna"
    voices.mkdir(parents=True)
    for number in range(10):
        record(voices, number)
    uniaudio("corpus", "manifest", str(root / "recordings"), "--out", str(root / "recordings" / "manifest.jsonl"), "--language", "en")
    rows = [json.loads(line) for line in (root / "recordings" / "manifest.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"speaker": "anna", "split": "valid" if number >= 8 else "train", "audio_filepath": f"recordings/{row['audio_filepath']}"}
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "farm.yaml").write_text(FARM.format(folder=root))
    uniaudio("tokenize", str(root / "farm.yaml"))
    return root


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    uniaudio("train", "demo_cpu", *TINY, f"data.shards={folder}/shards", f"train.output_dir={folder}/run")
    return folder / "run"


def test_shards_verify_and_name_their_tokenizers(folder):
    uniaudio("shards", "verify", str(folder / "shards"))
    farm = json.loads((folder / "shards" / "farm.json").read_text())
    assert farm["totals"]["clips_by_split"] == {"train": 8, "valid": 2}
    assert farm["tokenizer_configs"]["phone"]["name"] == "phones"


def test_training_in_two_processes_logs_losses_and_its_farm(folder, trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert any("valid/loss" in line for line in lines)
    manifest = json.loads((trained / "checkpoints" / "step-00000004" / "manifest.json").read_text())
    assert manifest["tokenizers"]["audio"]["version"].startswith("codec/")
    assert manifest["mlflow_run_id"]


def test_the_same_command_again_has_nothing_left_to_do(folder, trained):
    before = (trained / "metrics.jsonl").read_bytes()
    done = uniaudio("train", "demo_cpu", *TINY, f"data.shards={folder}/shards", f"train.output_dir={trained}")
    assert (trained / "metrics.jsonl").read_bytes() == before
    assert "nothing to do" in done.stderr and "step-00000004 is of a finished training" in done.stderr


def test_generation_writes_a_playable_wav_and_a_picture(folder, trained):
    words = ["--task", "tts", "--text", "this is", "--prompt", str(folder / "recordings/anna/clip0.wav"), "--max-seconds", "0.6"]
    facts = json.loads(uniaudio("generate", "--checkpoint", str(trained), *words, "--out", str(folder / "out.wav"), "--json").stdout)
    samples, rate = soundfile.read(folder / "out.wav")
    assert rate == 16_000
    assert len(samples) == round(facts["seconds"] * 16_000) > 0
    assert (folder / "out.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "sound", "--text", "rain"], "the checkpoint does not know this task | seen: sound | allowed: tts"),
        (["--task", "tts", "--prompt", "PROMPT"], "task tts needs words"),
        (["--task", "tts", "--text", "hello"], "task tts needs a recording | seen: none | remedy: --prompt FILE.wav"),
        (["--task", "tts", "--text", "hello", "--prompt", "nowhere.wav"], "cannot use the recording (missing)"),
        (["--task", "tts", "--text", "hello", "--prompt", "PROMPT", "--device", "cuda"], "this machine has no CUDA device | seen: cuda"),
        (["--task", "tts", "--text", "hello", "--prompt", "PROMPT", "--top-k", "0"], "top-k must be at least 1 | seen: 0"),
    ],
)
def test_bad_input_to_generate_is_one_clear_line(folder, trained, words, message, tmp_path):
    words = [str(folder / "recordings/anna/clip0.wav") if word == "PROMPT" else word for word in words]
    code, errors = command_line.uniaudio(tmp_path, "generate", "--checkpoint", str(trained), *words, "--out", str(folder / "bad.wav"))
    [line] = errors.strip().splitlines()
    assert code == 2 and message in line
    assert not (folder / "bad.wav").exists()
