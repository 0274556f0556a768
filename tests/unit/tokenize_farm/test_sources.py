"""Rows from whatever a farm's `manifest` names: Lhotse, folders, tars, packed and remote files."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.s3_server import FakeS3, serve_s3
from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm import lhotse, storage
from uniaudio.tokenize_farm.sources import open_source
from uniaudio.tokenize_farm.units import Plan

Row = dict[str, object]


def read(manifest: object) -> list[Row]:
    with open_source(str(manifest)) as source:
        return [json.loads(line) for line in source.path.read_text().splitlines()]


def pack(path: Path, rows: list[Row]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def recording(name: str, seconds: float = 9.0, *, source: str = "file", channels: int = 1) -> Row:
    sources = [{"type": source, "channels": list(range(channels)), "source": f"audio/{name}.flac"}]
    return {"id": name, "sources": sources, "sampling_rate": 16_000, "num_samples": int(seconds * 16_000), "duration": seconds}


def segment(name: str, recording_id: str, start: float, duration: float, **fields: object) -> Row:
    return {"id": name, "recording_id": recording_id, "start": start, "duration": duration, "channel": 0, **fields}


def cut(name: str, supervisions: list[Row], *, start: float = 0.0, duration: float = 9.0, **fields: object) -> Row:
    return {"id": name, "start": start, "duration": duration, "channel": 0, "supervisions": supervisions, "type": "MonoCut"} | fields


def test_json_lines_are_taken_as_they_are(tmp_path: Path) -> None:
    path = pack(tmp_path / "m.jsonl", [{"audio_filepath": "a.wav"}])
    with open_source(str(path)) as source:
        assert source.path == path and source.root == tmp_path


def test_a_packed_manifest_is_unpacked_and_gone_afterwards(tmp_path: Path) -> None:
    path = pack(tmp_path / "m.jsonl.gz", [{"audio_filepath": "deep/a.wav", "text": "é"}])
    with open_source(str(path)) as source:
        assert source.root == tmp_path and json.loads(source.path.read_text()) == {"audio_filepath": "deep/a.wav", "text": "é"}
        made = source.path
    assert not made.exists()


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_cuts_give_a_row_a_supervision(tmp_path: Path, name: str) -> None:
    one = segment("s1", "r1", 0.5, 2.0, text="hello", speaker="ann", language="en", custom={"kind": "singing", "other": 3})
    cuts = [
        cut("c1", [one], start=1.0, recording=recording("r1")),
        cut("c2", [segment("s2", "r2", -0.1, 3.0), segment("s3", "r2", 8.0, 5.0, text="end")], recording=recording("r2", channels=2)),
        cut("c3", [], recording=recording("r3"), custom={"kind": "sound", "caption": "rain"}),
    ]
    rows = read(pack(tmp_path / name, cuts))
    assert rows[0] == {
        **{"id": "c1", "audio_filepath": f"{tmp_path}/audio/r1.flac", "offset": 1.5, "duration": 2.0},
        **{"text": "hello", "speaker": "ann", "language": "en", "kind": "singing"},
    }
    spans = [(row["id"], row["offset"], row["duration"], row["channel"]) for row in rows[1:3]]
    assert spans == [("c2-0000", 0.0, 3.0, 0), ("c2-0001", 8.0, 1.0, 0)]
    assert rows[3] == {
        "id": "c3",
        "audio_filepath": f"{tmp_path}/audio/r3.flac",
        "offset": 0.0,
        "duration": 9.0,
        "kind": "sound",
        "caption": "rain",
    }


def test_what_a_recipe_writes_is_joined(tmp_path: Path) -> None:
    pack(tmp_path / "mls_recordings_train.jsonl.gz", [recording(f"r{i}") for i in range(3)])
    segments = [segment("whole", "r0", 0.0, 9.0, text="a"), segment("b", "r2", 1.0, 2.0, text="b"), segment("c", "r1", 4.0, 1.0)]
    pack(tmp_path / "mls_supervisions_train.jsonl.gz", segments)
    pack(tmp_path / "other_recordings_dev.jsonl", [recording("alone", 4.0)])
    rows = read(tmp_path)
    assert rows[0] == {"id": "whole", "audio_filepath": f"{tmp_path}/audio/r0.flac", "duration": 9.0, "text": "a"}
    assert [(row["id"], row.get("offset")) for row in rows] == [("whole", None), ("b", 1.0), ("c", 4.0), ("alone", None)]


def test_segments_far_from_their_recording_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lhotse, "_KEPT", 2)
    pack(tmp_path / "recordings.jsonl", [recording(f"r{i}") for i in range(4)])
    pack(tmp_path / "supervisions.jsonl", [segment("a", "r3", 0, 9), segment("b", "r0", 0, 9)])
    with pytest.raises(UserError, match=r"supervisions.jsonl: a segment's recording is not found near it.*r0.*lhotse cut simple"):
        read(tmp_path)


def test_a_url_is_an_address_and_a_command_is_never_run(tmp_path: Path) -> None:
    remote = recording("r1", source="url") | {"sources": [{"type": "url", "channels": [0], "source": "s3://b/a.flac"}]}
    assert read(pack(tmp_path / "a.jsonl", [cut("c", [], recording=remote)]))[0]["audio_filepath"] == "s3://b/a.flac"
    with pytest.raises(UserError, match=r"recording r1 has no source that is read.*command.*file, url"):
        read(pack(tmp_path / "b.jsonl", [cut("c", [], recording=recording("r1", source="command"))]))
    with pytest.raises(UserError, match=r"a line among Lhotse cuts is none.*single-channel"):
        read(pack(tmp_path / "c.jsonl", [cut("c", [], recording=recording("r1")), {"id": "no"}]))


def test_a_folder_gives_every_audio_file_by_what_its_place_says(tmp_path: Path) -> None:
    for name in ("ann/b.wav", "ann/a.flac", "sound/rain.ogg", "notes.pdf", "top.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "ann" / "a.txt").write_text("hello there")
    (tmp_path / "outside.wav").symlink_to("/etc/passwd")
    rows = read(tmp_path)
    assert [Path(str(row["audio_filepath"])).name for row in rows] == ["top.mp3", "a.flac", "b.wav", "rain.ogg"]
    assert rows[1]["text"] == "hello there" and rows[1]["speaker"] == "ann" and rows[3]["caption"] and rows[3]["kind"] == "sound"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no audio below the folder"):
        read(empty)


def flac() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(16_000) / 20), 16_000, format="FLAC")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], links: tuple[str, ...] = ()) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)


def test_tars_give_a_row_a_clip_with_what_lies_beside_it(tmp_path: Path) -> None:
    described = json.dumps({"text": "from json", "speaker": "s", "duration": 99, "kind": "noise", "n": 1}).encode()
    members = [("x/a.flac", flac()), ("x/a.json", described), ("x/b.txt", b"words \n here"), ("x/b.flac", flac()), ("c.json", b"{}")]
    members += [("../../escape.flac", flac()), ("d.json", b"\x80"), ("d.flac", flac()), ("e.json", b"[1]"), ("e.flac", flac())]
    write_tar(tmp_path / "001.tar", members, links=("f.flac",))
    (tmp_path / "002.tar").write_bytes((tmp_path / "001.tar").read_bytes()[:1_500])
    for manifest in (tmp_path, tmp_path / "00{1..2}.tar"):
        rows = read(manifest)
        assert [row.get("text") for row in rows[:5]] == ["from json", "words here", None, None, None] and rows[0]["speaker"] == "s"
        assert all("kind" not in row and "duration" not in row for row in rows)
        assert len({row["id"] for row in rows}) == len(rows) and str(rows[-1]["audio_filepath"]).endswith("002.tar")
    begin, size = str(rows[0]["audio_filepath"]).split("#")[1].split("/")[0].split("+")
    assert (tmp_path / "001.tar").read_bytes()[int(begin) : int(begin) + int(size)] == flac()


def test_a_remote_manifest_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeS3()
    store.objects["b/lists/m.jsonl"] = b'{"audio_filepath": "s3://b/a.flac"}\n'
    with serve_s3(store) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        storage._open.cache_clear()
        assert read("s3://b/lists/m.jsonl") == [{"audio_filepath": "s3://b/a.flac"}]
        with pytest.raises(UserError, match=r"cannot be fetched.*s3://b/lists/none.jsonl"):
            read("s3://b/lists/none.jsonl")


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_damaged_packed_manifest_is_named(tmp_path: Path, damage: str) -> None:
    path = pack(tmp_path / "m.jsonl.gz", [{"audio_filepath": f"{i}.wav", "text": "x" * 500} for i in range(500)])
    path.write_bytes(path.read_bytes()[:-30] if damage == "cut" else b"not packed")
    with pytest.raises(UserError, match=r"m.jsonl.gz:\d+: cannot be read on.*copy the file again"):
        read(path)


def numbered(root: Path) -> Iterator[Path]:
    for i in range(3):
        path = root / "ann" / f"{i}.flac"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(flac())
        yield path


def test_a_plan_of_a_folder_survives_the_end_of_its_source_and_a_move(tmp_path: Path) -> None:
    prints = set()
    for name in ("here", "there"):
        root = tmp_path / name
        root.mkdir()
        list(numbered(root))
        config = FarmConfig.model_validate({"manifest": str(root), "output_dir": "/out", "tokenizers": {"midi": {"name": "f0"}}})
        with open_source(config.manifest) as source:
            plan = Plan(source.path, config, {}, root=source.root)
        assert plan[0].rows[0].audio_filepath == f"{root}/ann/0.flac"
        prints.add(plan.fingerprint(0))
    assert len(prints) == 1
