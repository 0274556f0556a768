"""One writer a folder, whatever becomes of the one before."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from uniaudio import lock
from uniaudio.errors import Unavailable, UserError
from uniaudio.lock import only_writer

HOLDER = """
import sys, time
from pathlib import Path
from uniaudio.lock import only_writer
with only_writer(Path(sys.argv[1]), what="training", key="train.output_dir"):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    process = hold(folder)
    message = rf"another training is writing into this folder .*process {process.pid} on .*give another train\.output_dir"
    with pytest.raises(Unavailable, match=message), only_writer(folder, what="training", key="train.output_dir", patience=0.2):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with only_writer(folder, what="training", key="train.output_dir", patience=0):
        assert f"process {os.getpid()} " in (folder / ".lock").read_text()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"output_dir cannot be written .*file/run.*give another output_dir"),
        only_writer(tmp_path / "file" / "run", what="farm", key="output_dir"),
    ):
        pass


def test_a_file_system_without_locks_is_told_and_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def no_locks(descriptor: int, mode: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    monkeypatch.setattr(lock.logger, "warning", lambda form, *values: said.append(form % values))
    with only_writer(tmp_path, what="training", key="train.output_dir"):
        assert said == ["this file system has no locks (No locks available): nothing keeps a second writer out"]
