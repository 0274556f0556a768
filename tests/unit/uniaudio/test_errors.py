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
