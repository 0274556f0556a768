"""`uniaudio shards show --task`: a document in words, through the real command line; and two vocabularies side by side."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from uniaudio.cli import cli, main
from uniaudio.errors import UserError
from uniaudio.pretrain.data.vocabulary import load_vocabulary


def show(shards: Path, *options: str) -> list[str]:
    result = CliRunner().invoke(cli, ["shards", "show", str(shards), *options])
    if result.exception:
        raise result.exception
    return [line for line in result.stdout.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]


def test_a_sequence_is_shown_frame_by_frame_with_token_names(shards) -> None:
    head, *lines = show(shards, "--task", "tts", "--clip", "clip-00005")
    key, frames, prompt = re.fullmatch(r"tts/(train-\d+/clip-00005): (\d+) frames, prompt of (train-\d+/clip-\d+)", head).groups()
    assert len(lines) == int(frames) and key != prompt
    assert [line.split() for line in lines[:3]] == [["0", "<start>"], ["1", "<tts_task>"], ["2", "<phone_start>"]]
    assert re.fullmatch(r" +3   phone:\d+", lines[3])
    target = [line for line in lines if "*" in line]
    assert re.fullmatch(r" +\d+ \* audio\.0:\d+  audio\.1:\d+  audio\.2:\d+", target[0])
    assert [line.split()[-1] for line in target[-2:]] == ["<audio_end>", "<end>"] and lines[-2:] == target[-2:]


def test_other_tasks_and_tables_are_shown(shards) -> None:
    lines = show(shards, "--task", "audio_tagging", "--vocabulary", "extended", "--codebooks", "4")
    assert lines[0].startswith("audio_tagging/") and any(re.search(r"\* class_event:\d+$", line) for line in lines)
    assert any("audio.3:" in line for line in lines)
    assert any(line.split()[-1] == "<continuous_token>" for line in show(shards, "--task", "sound"))


def test_faults_are_named(shards) -> None:
    with pytest.raises(UserError, match="no such clip among those that serve this task.*nobody"):
        show(shards, "--task", "tts", "--clip", "nobody")
    with pytest.raises(UserError, match="vocabulary paper has no .*class_event"):
        show(shards, "--task", "audio_tagging")


def test_a_vocabulary_mismatch_prints_the_tables_side_by_side(monkeypatch, capsys) -> None:
    def fail(*_: object, **__: object) -> None:
        load_vocabulary("paper").require_same(load_vocabulary("released"), what="the checkpoint")

    monkeypatch.setattr("uniaudio.cli.cli", fail)
    monkeypatch.setattr(sys, "argv", ["uniaudio"])
    with pytest.raises(SystemExit):
        main()
    first, *table = capsys.readouterr().err.splitlines()
    assert first.startswith("uniaudio: error: the checkpoint was made with another vocabulary")
    assert re.fullmatch(r"paper +\| released", table[0]) and any(re.fullmatch(r"53 <audio_mask> +\| 53 -", line) for line in table)
    assert any(re.fullmatch(r"audio 128\.\.3199 x3 +\| audio 128\.\.3200 x3", line) for line in table)
