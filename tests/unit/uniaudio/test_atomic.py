"""Publishing whole or not at all."""

import errno

import pytest

from uniaudio.atomic import publish_bytes, publish_directory, publish_file


def test_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    target = tmp_path / "a.bin"
    publish_bytes(target, b"old")
    with pytest.raises(OSError, match="No space"), publish_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_directory_replaces_an_older_one_whole(tmp_path):
    for content in ("one", "two"):
        with publish_directory(tmp_path / "step") as folder:
            (folder / content).write_text(content)
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_failed_directory_leaves_the_old_one(tmp_path):
    with publish_directory(tmp_path / "step") as folder:
        (folder / "whole").write_text("x")
    with pytest.raises(RuntimeError), publish_directory(tmp_path / "step") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["step"]
