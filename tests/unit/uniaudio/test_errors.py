"""One line, whatever is in it; whole across processes."""

import pickle
import sys

import numpy as np
import pytest
import soundfile

from uniaudio import cli
from uniaudio.errors import MissingDependency, UserError


def test_error_is_one_line_with_every_part():
    error = UserError("a\nb", seen=[1], allowed="2, 3", remedy="do\nthis")
    assert str(error) == "a b | seen: [1] | allowed: 2, 3 | remedy: do this"


def test_error_survives_a_process_border():
    for error in (UserError("x", seen=1), MissingDependency("ray", needed_for="the farm", extra="farm")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["corpus", "manifest", "{folder}", "--out", "{file}/m.jsonl"], "a path cannot be used | seen: "),
        (["config", "{file}"], "not a text file | seen: "),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000)
    file = tmp_path / "bytes.yaml"
    file.write_bytes(bytes(range(128, 256)))
    monkeypatch.setattr(sys, "argv", ["uniaudio", *(word.format(folder=tmp_path / "in", file=file) for word in words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "demo_cpu"], "No such command 'trian'. Did you mean train?"),
        (["config", "demo_cup"], "seen: demo_cup | allowed: .*| remedy: did you mean demo_cpu?"),
        (["config", "demo_cpu", "steps=3"], "unknown key steps | seen: 3 | allowed: .*| remedy: did you mean train.steps?"),
        (["config", "demo_cpu", "data.tasks=tts"], "a list of texts, at least 1 | remedy: did you mean data.tasks=[tts]?"),
        (["codec", "encode", "a.wav", "--out", "o", "--device", "gpu"], "no such device | seen: --device gpu | allowed: cpu, cuda, cuda:1"),
        (
            ["train", "demo_cpu", "train.init_from=/none"],
            "train.init_from: nothing is there | seen: /none | remedy: a checkpoint",
        ),
        (["shards", "show", "{folder}"], "no published shards in this folder | seen: "),
        (["config", "demo_cpu", "train.output_dir="], "override train.output_dir=: train.output_dir is empty | seen: nothing (null)"),
        (["evaluate", "{folder}", "--seed", str(2**63)], f"--seed': {2**63} is not in the range 0<=x<={2**63 - 1}"),
        (["generate", "--seed", str(2**63)], f"--seed': {2**63} is not in the range 0<=x<={2**63 - 1}"),
        (["tokenize", "fit-semantic", "{folder}", "--out", "x", "--seed", "-1"], f"--seed': -1 is not in the range 0<=x<={2**63 - 1}"),
    ],
)
def test_a_mistyped_command_says_what_was_meant(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["uniaudio", *(word.format(folder=tmp_path) for word in words)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(part in said for part in message.split(".*")), said


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def fill() -> None:
        with open("/dev/full", "w") as handle:
            handle.write("x")

    monkeypatch.setattr(cli, "cli", lambda standalone_mode: fill())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "a disk is full | seen: No space left on device | remedy: make room" in capsys.readouterr().err
