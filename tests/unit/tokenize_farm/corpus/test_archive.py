"""Unpacking: the right files come out, and nothing ever lands outside the target folder."""

import shutil
import zipfile
from pathlib import Path

import pytest
from corpus_builders import deb_bytes, make_deb, tar_bytes

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.corpus import archive
from uniaudio.tokenize_farm.corpus.archive import unpack_deb, unpack_zip

FILES = {"./usr/share/a.wav": b"sound", "./usr/share/b.txt": b"text", "./usr/share/doc/copyright": b"CC0"}


def everything(name: str) -> bool:
    return True


def unpacked(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("compression", ["xz", ""])
def test_wanted_files_come_out_and_others_do_not(tmp_path: Path, compression: str) -> None:
    deb = tmp_path / "a.deb"
    deb.write_bytes(deb_bytes(tar_bytes(FILES, compression), "data.tar.xz" if compression else "data.tar"))
    assert unpack_deb(deb, tmp_path / "out", lambda name: not name.endswith(".txt")) == 2
    assert unpacked(tmp_path / "out") == {"usr/share/a.wav": b"sound", "usr/share/doc/copyright": b"CC0"}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb reads the other compressions")
def test_other_compressions_go_through_dpkg_deb(tmp_path: Path) -> None:
    deb = tmp_path / "a.deb"
    deb.write_bytes(deb_bytes(tar_bytes(FILES, "gz"), "data.tar.gz"))
    deb.write_bytes(deb.read_bytes().replace(b"control.tar.xz", b"control.tar   "))
    assert unpack_deb(deb, tmp_path / "out", everything) == 3
    assert unpacked(tmp_path / "out")["usr/share/b.txt"] == b"text"


def test_a_compression_nobody_here_knows_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.deb").write_bytes(deb_bytes(b"odd", "data.tar.zst"))
    monkeypatch.setattr(archive.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"holds data\.tar\.zst .*install dpkg"):
        unpack_deb(tmp_path / "a.deb", tmp_path / "out", everything)


@pytest.mark.parametrize("name", ["../evil.wav", "usr/../../evil.wav", "/etc/evil.wav", "a\\..\\evil.wav"])
def test_no_member_leaves_the_folder(tmp_path: Path, name: str) -> None:
    make_deb(tmp_path / "a.deb", {name: b"evil"})
    with pytest.raises(UserError, match="leaves its folder"):
        unpack_deb(tmp_path / "a.deb", tmp_path / "out", everything)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as package:
        package.writestr(name.replace("\\", "/"), b"evil")
    with pytest.raises(UserError, match="leaves its folder"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "out", everything)
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_not_followed_and_not_made(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    deb = make_deb(tmp_path / "a.deb", {}, links={"./usr/in": str(tmp_path / "outside"), "./usr/x.wav": "/etc/passwd"})
    assert unpack_deb(deb, tmp_path / "out", everything) == 0
    assert not (tmp_path / "out" / "usr").exists()


def test_a_pk3_inside_is_unpacked_by_the_same_rules(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.pk3", "w") as package:
        package.writestr("sound/a.ogg", b"ogg")
        package.writestr("sound/notes.txt", b"no")
    deb = make_deb(tmp_path / "a.deb", {"./usr/s.pk3": (tmp_path / "s.pk3").read_bytes()})
    unpack_deb(deb, tmp_path / "out", lambda name: not name.endswith(".txt"))
    assert unpacked(tmp_path / "out" / "usr" / "s.pk3.d") == {"sound/a.ogg": b"ogg"}


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1_000)
    with pytest.raises(UserError, match="unpacks to more than"):
        unpack_deb(make_deb(tmp_path / "a.deb", {"a.wav": bytes(2_000)}), tmp_path / "out", everything)


@pytest.mark.parametrize(
    "data", [b"no archive", b"!<arch>\n", b"!<arch>\n" + b"x" * 60, deb_bytes(b"not xz"), deb_bytes(tar_bytes(FILES)[:-40])]
)
def test_damaged_packages_are_user_errors(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.deb").write_bytes(data)
    with pytest.raises(UserError, match="fetch it again"):
        unpack_deb(tmp_path / "a.deb", tmp_path / "out", everything)


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_file_that_is_also_a_folder_is_damage(tmp_path: Path, names: tuple[str, str]) -> None:
    deb = make_deb(tmp_path / "a.deb", dict.fromkeys(names, b"x"))
    with pytest.raises(UserError, match="is damaged"):
        unpack_deb(deb, tmp_path / "out", everything)


def test_a_damaged_zip_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(UserError, match="damaged"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "out", everything)
