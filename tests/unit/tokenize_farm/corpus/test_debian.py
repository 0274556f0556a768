"""Fetching: hashes are checked everywhere, the cache works without network, and every failure is one clear line."""

from pathlib import Path

import pytest
from corpus_builders import deb_bytes, make_mirror, sha256, tar_bytes

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.corpus import debian
from uniaudio.tokenize_farm.corpus.debian import fetch_packages, unpack

TINY = deb_bytes(tar_bytes({"./usr/a.wav": b"a"}))
OTHER = deb_bytes(tar_bytes({"./usr/b.wav": b"b"}))


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_mirror(tmp_path / "mirror", {"tiny_1.0_all.deb": TINY, "other_1%3a2.0_all.deb": OTHER})
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    return folder


def calls(mirror: Path) -> list[str]:
    log = mirror / "log"
    return log.read_text().splitlines() if log.exists() else []


def fault(names: list[str], cache: Path) -> str:
    with pytest.raises(UserError) as caught:
        fetch_packages(names, cache)
    return str(caught.value)


def test_packages_are_fetched_checked_and_named(tmp_path: Path, mirror: Path) -> None:
    seen: list[str] = []
    packages = fetch_packages(["tiny", "other"], tmp_path / "cache", progress=seen.append)
    assert sorted(seen) == ["other", "tiny"]
    assert packages["tiny"].path.read_bytes() == TINY and packages["tiny"].sha256 == sha256(TINY)
    assert packages["other"].version == "1%3a2.0"
    assert not any("update" in call for call in calls(mirror)), "the system's lists do"


def test_the_cache_needs_no_apt(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch_packages(["tiny"], tmp_path / "cache")
    monkeypatch.setenv("PATH", "/nowhere")
    assert fetch_packages(["tiny"], tmp_path / "cache") == first


def test_a_pinned_package_put_into_the_cache_by_hand_needs_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(debian.PINS, "tiny", ("1.0", sha256(TINY)))
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "cache/debs").mkdir(parents=True)
    (tmp_path / "cache/debs/tiny_1.0_all.deb").write_bytes(TINY)
    assert fetch_packages(["tiny"], tmp_path / "cache")["tiny"].version == "1.0"


def test_a_package_nothing_vouches_for_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "cache/debs").mkdir(parents=True)
    (tmp_path / "cache/debs/tiny_6.6_all.deb").write_bytes(TINY)
    assert "--audio-dir" in fault(["tiny"], tmp_path / "cache")


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path, mirror: Path) -> None:
    path = fetch_packages(["tiny"], tmp_path / "cache")["tiny"].path
    path.write_bytes(TINY[:-1])
    assert fetch_packages(["tiny"], tmp_path / "cache")["tiny"].path.read_bytes() == TINY


def test_stale_lists_are_replaced_by_private_ones(tmp_path: Path, mirror: Path) -> None:
    (mirror / "stale").touch()
    fetch_packages(["tiny"], tmp_path / "cache")
    update = next(call for call in calls(mirror) if call.endswith("update"))
    assert f"-oDir::State::Lists={tmp_path / 'cache/apt/lists'}" in update
    assert (tmp_path / "cache/apt/lists/partial").is_dir()


def test_bytes_that_differ_from_the_index_are_refused(tmp_path: Path, mirror: Path) -> None:
    (mirror / "wrong_index").touch()
    message = fault(["tiny"], tmp_path / "cache")
    assert "another SHA-256 than the index says" in message and sha256(TINY) in message
    assert [path.name for path in (tmp_path / "cache/debs").iterdir()] == []


def test_another_package_under_a_pinned_version_is_refused(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(debian.PINS, "tiny", ("1.0", "f" * 64))
    assert "not the one that is pinned" in fault(["tiny"], tmp_path / "cache")


def test_an_unknown_package_names_itself_and_the_way_out(tmp_path: Path, mirror: Path) -> None:
    message = fault(["tiny", "absent"], tmp_path / "cache")
    assert "cannot find absent" in message and "Unable to locate package absent" in message and "--audio-dir" in message
    assert "tiny" not in message


def test_no_apt_and_no_cache_is_one_line_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    message = fault(["tiny"], tmp_path / "cache")
    assert "apt-get is not on this machine" in message and "--audio-dir DIR" in message and "\n" not in message


def test_unpacking_happens_once_a_purpose_and_is_published_whole(tmp_path: Path, mirror: Path) -> None:
    package = fetch_packages(["tiny"], tmp_path / "cache")["tiny"]
    folder = unpack(package, tmp_path / "cache", lambda name: True, purpose="all")
    assert (folder / "usr/a.wav").read_bytes() == b"a"
    (folder / "mark").touch()
    assert (unpack(package, tmp_path / "cache", lambda name: True, purpose="all") / "mark").exists()
    assert unpack(package, tmp_path / "cache", lambda name: False, purpose="none") != folder

    def fails(name: str) -> bool:
        raise UserError("stopped")

    with pytest.raises(UserError):
        unpack(package, tmp_path / "cache", fails, purpose="broken")
    assert not list((tmp_path / "cache/unpacked").glob("*broken*"))
