"""The commands end to end: a fake mirror for the demo, a folder for the user's own recordings."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from corpus_builders import deb_bytes, g722_bytes, make_mirror, put, tar_bytes, wav_bytes

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import load_audio
from uniaudio.tokenize_farm.corpus import build, debian, demo
from uniaudio.tokenize_farm.corpus.cli import corpus
from uniaudio.tokenize_farm.manifest import read_manifest


def run(*arguments: object) -> Result:
    return CliRunner().invoke(corpus, [str(argument) for argument in arguments])


def icons_deb() -> bytes:
    files = {f"./usr/share/sounds/sound-icons/bell-{number}.wav": wav_bytes(1.0, 200.0 + number) for number in range(6)}
    return deb_bytes(tar_bytes({**files, "./usr/share/doc/sound-icons/copyright": b"Files: *\nLicense: CC0\n"}))


def music_deb() -> bytes:
    return deb_bytes(tar_bytes({f"./usr/share/asterisk/moh/tune{number}.g722": g722_bytes(25.0, number) for number in range(2)}))


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_mirror(tmp_path / "mirror", {"sound-icons_9_all.deb": icons_deb(), "asterisk-moh-opsound-g722_9_all.deb": music_deb()})
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(debian, "PINS", {})
    monkeypatch.setattr(demo, "SHARES", {"sound-icons": 0.3, "asterisk-moh": 0.7})
    return folder


def test_demo_makes_a_manifest_whose_every_row_loads_and_has_a_licence(tmp_path: Path, mirror: Path) -> None:
    result = run("demo", "--out", tmp_path / "out", "--minutes", 0.5)
    assert result.exit_code == 0, result.output
    rows = list(read_manifest(tmp_path / "out/manifest.jsonl"))
    assert {row.kind for row in rows} == {"sound", "music"} and {row.split for row in rows} == {"train", "valid"}
    for row in rows:
        assert row.licence and row.caption and row.source and Path(row.audio_filepath).is_relative_to(tmp_path / "out")
        assert len(load_audio(row.audio_filepath, offset=row.offset, duration=row.duration)) == pytest.approx(
            (row.duration or 0) * 16_000, abs=16
        )


def test_demo_again_needs_no_apt_and_writes_the_same_bytes(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("demo", "--out", tmp_path / "out", "--minutes", 0.5)
    first = (tmp_path / "out/manifest.jsonl").read_bytes()
    monkeypatch.setenv("PATH", "/nowhere")
    assert run("demo", "--out", tmp_path / "out", "--minutes", 0.5).exit_code == 0
    assert (tmp_path / "out/manifest.jsonl").read_bytes() == first


def test_demo_without_apt_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = run("demo", "--out", tmp_path / "out")
    assert isinstance(result.exception, UserError) and "--audio-dir DIR" in str(result.exception)
    assert not (tmp_path / "out/manifest.jsonl").exists()


def test_demo_of_own_recordings_needs_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    own = put(tmp_path / "own", {f"anna/{number}.wav": wav_bytes(1.0, 100.0 + number) for number in range(20)})
    result = run("demo", "--out", tmp_path / "out", "--audio-dir", own, "--minutes", 1, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert sum(group["clips"] for group in summary["groups"]) >= 15 and {group["split"] for group in summary["groups"]} == {
        "train",
        "valid",
    }


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_demo_of_no_minutes_is_refused(tmp_path: Path, minutes: str) -> None:
    assert "--minutes must be positive" in str(run("demo", "--out", tmp_path, "--minutes", minutes).exception)


def test_full_takes_named_sources_and_refuses_unknown_ones(tmp_path: Path, mirror: Path) -> None:
    result = run("full", "--out", tmp_path / "out", "--source", "sound-icons", "--json")
    assert json.loads(result.stdout)["groups"][0]["licences"] == ["CC0"]
    message = str(run("full", "--out", tmp_path / "out", "--source", "radio").exception)
    assert "seen: radio" in message and "sound-icons" in message


def test_a_source_whose_package_has_nothing_is_an_error(tmp_path: Path, mirror: Path) -> None:
    (mirror / "sound-icons_9_all.deb").write_bytes(
        deb_bytes(
            tar_bytes({"./usr/share/sounds/sound-icons/x.txt": b"", "./usr/share/doc/sound-icons/copyright": b"Files: *\nLicense: CC0\n"})
        )
    )
    with pytest.raises(UserError, match="sound-icons has no recordings"):
        build.build_corpus(build.find_sources(["sound-icons"]), tmp_path / "cache")


def test_manifest_of_a_folder_reads_kinds_speakers_and_texts(tmp_path: Path) -> None:
    own = put(
        tmp_path / "own",
        {
            "speech/anna/a.wav": wav_bytes(1.0, 100),
            "speech/anna/a.txt": b"hello  there\n",
            "music/slow_song.wav": wav_bytes(1.0, 200),
            "sound/rain.wav": wav_bytes(1.0, 300),
            "sound/rain.txt": b"rain on a roof",
            "b.wav": wav_bytes(1.0, 400),
            "bad.wav": b"not audio",
            "notes.pdf": b"",
        },
    )
    result = run("manifest", own, "--out", own / "manifest.jsonl", "--language", "en", "--licence", "CC0-1.0")
    assert result.exit_code == 0 and "left out: 1 (not_audio)" in result.output
    rows = {Path(row.audio_filepath).name: row for row in read_manifest(own / "manifest.jsonl")}
    assert set(rows) == {"a.wav", "slow_song.wav", "rain.wav", "b.wav"}
    speech = rows["a.wav"]
    assert (speech.kind, speech.speaker, speech.text, speech.language, speech.licence) == ("speech", "anna", "hello there", "en", "CC0-1.0")
    assert (rows["slow_song.wav"].kind, rows["slow_song.wav"].caption, rows["slow_song.wav"].language) == ("music", "slow song", None)
    assert rows["rain.wav"].caption == "rain on a roof"
    assert (rows["b.wav"].speaker, rows["b.wav"].text) == ("own", None)


def test_manifest_says_when_nothing_is_held_out(tmp_path: Path) -> None:
    for count, told in ((1, True), (60, False)):
        own = put(tmp_path / f"own{count}", {f"anna/{number}.wav": wav_bytes(0.2, 100.0 + number) for number in range(count)})
        result = run("manifest", own, "--out", own / "m.jsonl", "--json")
        assert ({row.split for row in read_manifest(own / "m.jsonl")} == {"train"}) == told
        assert (
            'nothing is held out, as chance has it with few recordings; for a held-out loss set "split": "valid"' in result.stderr
        ) == told


def test_manifest_of_nothing_is_one_line(tmp_path: Path) -> None:
    assert "no such folder" in str(run("manifest", tmp_path / "none", "--out", tmp_path / "m.jsonl").exception)
    (tmp_path / "empty").mkdir()
    assert "no readable audio" in str(run("manifest", tmp_path / "empty", "--out", tmp_path / "m.jsonl").exception)
    put(tmp_path / "odd", {"a.wav": wav_bytes(), "a.txt": b"\xff\xfe"})
    assert "not UTF-8" in str(run("manifest", tmp_path / "odd", "--out", tmp_path / "m.jsonl").exception)
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize("command", [[], ["demo"], ["full"], ["manifest"]])
def test_help_has_an_example(command: list[str]) -> None:
    assert "Example: uniaudio corpus" in run(*command, "--help").output
