"""The manifest: what is written is read back, and every bad line says where it is and what to do."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow, make_id, read_manifest, write_manifest
from uniaudio.tokenize_farm.schema import valid_key


def row(number: int, **keys: object) -> ManifestRow:
    return ManifestRow.model_validate({"id": f"clip-{number}", "audio_filepath": f"audio/{number}.wav", "duration": number + 0.5, **keys})


def fault(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_manifest(path))
    return str(caught.value)


def test_rows_come_back_with_absolute_paths_and_custom_keys(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    rows = [row(0, text="hé", snr=3.5, tags=["a"]), row(1, kind="music", split="valid", licence="CC0-1.0")]
    write_manifest(path, rows)
    back = list(read_manifest(path))
    assert [item.audio_filepath for item in back] == [str(tmp_path / "audio/0.wav"), str(tmp_path / "audio/1.wav")]
    assert back[0].custom == {"snr": 3.5, "tags": ["a"]}
    assert [item.model_copy(update={"audio_filepath": other.audio_filepath}) for item, other in zip(back, rows)] == rows


def test_writing_what_was_read_gives_the_same_bytes_and_the_folder_can_move(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_manifest(first, [row(3, z=1, a=2), row(4)])
    write_manifest(second, read_manifest(first))
    assert first.read_bytes() == second.read_bytes()
    assert str(tmp_path) not in first.read_text()


def test_a_file_elsewhere_keeps_its_absolute_path(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", [row(0, audio_filepath="/elsewhere/x.wav")])
    assert next(read_manifest(tmp_path / "m.jsonl")).audio_filepath == "/elsewhere/x.wav"


def test_a_nemo_row_without_id_gets_a_stable_one(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio_filepath": "a b/ü.wav", "duration": 1.5, "text": "hi"}\n\n{"audio_filepath": "a b/ü.wav", "offset": 1.5}\n')
    first, second = read_manifest(path)
    assert first.id != second.id and valid_key(first.id) and valid_key(second.id)
    assert first.id == next(read_manifest(path)).id


@given(st.text(min_size=1, max_size=300))
@example("/")
@example(".")
@example("/\n")
def test_every_made_id_is_a_valid_key(name: str) -> None:
    assert valid_key(make_id(name))


def test_blank_text_means_none() -> None:
    assert row(0, text="  ").text is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", ["not JSON", "one JSON object a line"]),
        ("\udcff", ["not JSON"]),
        ("[1]", ["not a JSON object", "list"]),
        ('{"id": "a"}', ["audio_filepath", "nothing"]),
        ('{"audio_filepath": "a.wav", "duration": -1}', ["key duration", "-1"]),
        ('{"audio_filepath": "a.wav", "duration": NaN}', ["key duration", "nan"]),
        ('{"audio_filepath": "a.wav", "offset": -2}', ["key offset", "-2"]),
        ('{"audio_filepath": "a.wav", "kind": "noise"}', ["key kind", "noise", "singing"]),
        ('{"audio_filepath": "a.wav", "text": 3}', ["key text", "3"]),
        ('{"audio_filepath": 7}', ["key audio_filepath", "7"]),
        ('{"audio_filepath": "../../etc/passwd"}', ["leaves the manifest's folder", "../../etc/passwd"]),
        ('{"audio_filepath": "ok.wav", "id": "first"}', ["id was used before", "first"]),
    ],
)
def test_a_bad_line_says_where_what_and_how_to_mend_it(tmp_path: Path, line: str, words: list[str]) -> None:
    path = tmp_path / "m.jsonl"
    good = json.dumps({"id": "first", "audio_filepath": "a.wav"})
    path.write_bytes(f"{good}\n{line}\n".encode(errors="surrogateescape"))
    message = fault(path)
    assert f"{path}:2" in message and "remedy" in message and "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    assert "uniaudio corpus manifest" in fault(tmp_path / "none.jsonl")


def test_writing_an_id_twice_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="used before"):
        write_manifest(tmp_path / "m.jsonl", [row(0), row(0)])
    assert list(tmp_path.iterdir()) == []


def test_a_row_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        row(0).text = "other"  # type: ignore[misc]
