"""Work units: a pure function of the manifest."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm import scan
from uniaudio.tokenize_farm.manifest import ManifestRow, is_plain, parse_row
from uniaudio.tokenize_farm.scan import hold_out, scan_manifest
from uniaudio.tokenize_farm.schema import valid_key
from uniaudio.tokenize_farm.units import Plan, WorkUnit, clip_key

Row = dict[str, object]


def make_row(number: int, **fields: object) -> Row:
    return {"id": f"clip{number}", "audio_filepath": f"{number}.wav"} | fields


def make_plan(folder: Path, rows: list[Row], tokenizers: dict[str, str] | None = None, **fields: object) -> Plan:
    folder.mkdir(exist_ok=True)
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {"manifest": str(manifest), "output_dir": "/out", "tokenizers": {"midi": {"name": "f0"}}, "clips_per_unit": 4}
    return Plan(manifest, FarmConfig.model_validate(base | fields), tokenizers or {"midi": "f0/1"})


def ids(units: list[WorkUnit]) -> list[str]:
    return [row.id for unit in units for row in unit.rows]


def splits_of(folder: Path, rows: list[Row], fraction: float) -> list[str]:
    plan = make_plan(folder, rows, held_out_fraction=fraction)
    split = {row.id: unit.split for unit in plan for row in unit.rows}
    return [split[str(row["id"])] for row in rows]


def test_units_hold_every_row_once_in_the_manifests_order(tmp_path: Path) -> None:
    rows = [make_row(i, speaker=f"s{i % 20}") for i in range(50)]
    plan = make_plan(tmp_path, rows, held_out_fraction=0.2)
    units = list(plan)
    for split in ("train", "valid"):
        mine = [unit for unit in units if unit.split == split]
        assert [unit.number for unit in mine] == list(range(len(mine))) and len(mine) > 0
        assert all(len(unit.rows) == 4 for unit in mine[:-1])
        assert ids(mine) == [row["id"] for row in rows if row["id"] in set(ids(mine))]
    assert sorted(ids(units)) == sorted(str(row["id"]) for row in rows)
    assert [plan.find(*plan.place(i)) for i in range(len(plan))] == list(range(len(plan)))
    assert [plan.size(i) for i in range(len(plan))] == [len(unit.rows) for unit in units]
    assert plan.find("train", 99) is None and plan.rows == 50
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_a_large_manifest_read_by_several_processes_gives_the_same_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [make_row(i, speaker=f"s{i % 7}", text="x" * (i % 50), kind="sound" if i % 3 else "speech") for i in range(997)]
    text = "\n\n".join(json.dumps(row) for row in rows)  # blank lines between, none at the end
    (tmp_path / "m.jsonl").write_text(text)
    alone = scan_manifest(tmp_path / "m.jsonl", seed=3)
    monkeypatch.setattr(scan, "_PARALLEL_BYTES", 1)
    together = scan_manifest(tmp_path / "m.jsonl", seed=3, processes=2)
    assert len(alone) == 997
    for name, column in vars(alone).items():
        np.testing.assert_array_equal(column, getattr(together, name))


def test_same_manifest_gives_the_same_units(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(30)]
    assert list(make_plan(tmp_path, rows)) == list(make_plan(tmp_path, rows))


@pytest.mark.parametrize("change", [{"filters": {"min_seconds": 0.5}}, {"seed": 1}])
def test_fingerprint_follows_the_config(tmp_path: Path, change: dict) -> None:
    rows = [make_row(i, split="train") for i in range(3)]
    before = make_plan(tmp_path, rows).fingerprint(0)
    assert make_plan(tmp_path, rows, **change).fingerprint(0) != before
    assert make_plan(tmp_path, rows, {"midi": "f0/2"}).fingerprint(0) != before
    assert make_plan(tmp_path, [*rows[:2], make_row(2, split="train", text="x")]).fingerprint(0) != before


def test_fingerprint_survives_a_moved_corpus(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    prints = {
        make_plan(folder, [make_row(1, audio_filepath=name)]).fingerprint(0)
        for folder in (here, there)
        for name in ("1.wav", f"{folder}/1.wav")
    }
    assert len(prints) == 1


def test_a_unit_travels_without_its_parsed_rows_and_reads_them_again(tmp_path: Path) -> None:
    import pickle

    unit = make_plan(tmp_path, [make_row(1, speaker="s")])[0]
    size = len(pickle.dumps(unit))
    assert unit.rows[0].audio_filepath == str(tmp_path / "1.wav")
    assert len(pickle.dumps(unit)) == size and pickle.loads(pickle.dumps(unit)).rows == unit.rows


def test_a_speaker_never_lies_in_both_splits(tmp_path: Path) -> None:
    rows = [make_row(i, speaker=f"s{i % 30}", kind="singing" if i % 2 else "speech") for i in range(300)]
    splits = splits_of(tmp_path, rows, 0.2)
    held_out = {row["speaker"] for row, split in zip(rows, splits) if split == "valid"}
    assert 0 < len(held_out) < 30
    assert not held_out & {row["speaker"] for row, split in zip(rows, splits) if split == "train"}


def test_a_rows_own_split_wins(tmp_path: Path) -> None:
    rows = [make_row(i, split="valid" if i < 5 else "train") for i in range(10)]
    assert splits_of(tmp_path, rows, 0.5) == ["valid"] * 5 + ["train"] * 5


def test_every_kind_has_a_held_out_clip_where_it_can(tmp_path: Path) -> None:
    rows = [make_row(i, kind="speech", speaker="ab"[i > 7]) for i in range(10)] + [make_row(20 + i, kind="sound") for i in range(3)]
    rows.append(make_row(99, kind="music"))
    splits = splits_of(tmp_path, rows, 0.001)
    assert [split for row, split in zip(rows, splits) if row["kind"] == "speech"] == ["train"] * 8 + ["valid"] * 2
    assert sorted(split for row, split in zip(rows, splits) if row["kind"] == "sound") == ["train", "train", "valid"]
    assert splits[-1] == "train"  # a single recording stays in training
    assert set(splits_of(tmp_path, rows, 0.0)) == {"train"}


@pytest.mark.parametrize("seed", range(8))
def test_a_kind_is_never_held_out_whole(tmp_path: Path, seed: int) -> None:
    """A speaker alone is held out by chance in one manifest of 1 / held_out_fraction: nothing would be left to train on."""
    make_plan(tmp_path, [make_row(i, speaker="lj") for i in range(5)] + [make_row(9 + i, kind="sound") for i in range(2)])
    columns = scan_manifest(tmp_path / "manifest.jsonl", seed=seed)
    splits = hold_out(columns, fraction=0.9).tolist()
    assert splits[:5] == [0] * 5 and sorted(splits[5:]) == [0, 1]


def test_the_share_held_out_is_about_what_was_asked(tmp_path: Path) -> None:
    make_plan(tmp_path, [make_row(i) for i in range(4_000)])
    columns = scan_manifest(tmp_path / "manifest.jsonl", seed=0)
    assert 0.08 < hold_out(columns, fraction=0.1).mean() < 0.12


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([make_row(1), make_row(2, split="test")], r"manifest.jsonl:2: key split: unknown split.*test.*train, valid"),
        ([make_row(1), make_row(3), make_row(1)], "one key.*clip1, clip1.*id of its own"),
        ([make_row(1, id="a b"), make_row(2, id="a b")], "one key"),
        ([make_row(1), make_row(2, duration=-1)], r"manifest.jsonl:2: key duration.*-1"),
    ],
)
def test_faults_of_the_manifest_are_named(tmp_path: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(tmp_path, rows)


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read.*uniaudio corpus manifest"):
        scan_manifest(tmp_path / "none.jsonl", seed=0)


def test_any_id_becomes_a_valid_key() -> None:
    names = ["plain_1", "a b", "../x", "é" * 300, "a/b.c"]
    keys = [clip_key(ManifestRow(id=name, audio_filepath="x.wav")) for name in names]
    assert keys[0] == "plain_1" and all(valid_key(key) for key in keys) and len(set(keys)) == len(names)


_VALUES = st.one_of(
    st.text(max_size=5),
    st.floats(),
    st.integers(),
    st.none(),
    st.booleans(),
    st.sampled_from(["speech", "music", " ", "train", "../x", "a\0"]),
)
_ROWS = st.dictionaries(
    st.sampled_from(["audio_filepath", "id", "duration", "offset", "kind", "text", "speaker", "split", "custom", "other"]), _VALUES
)


@settings(max_examples=300, deadline=None)
@given(_ROWS)
def test_what_the_quick_test_calls_plain_is_a_good_row(data: Row) -> None:
    line = json.dumps(data, allow_nan=True).encode()
    if is_plain(data):
        row = parse_row("", line, Path("/corpus"))
        assert all(getattr(row, key) == value for key, value in data.items() if key not in ("audio_filepath", "other"))


def _session(leader: int) -> set[int]:
    """Living processes of a session."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.add(int(path.parent.name))
    return found


def test_a_killed_scan_leaves_no_process(tmp_path: Path) -> None:
    line = json.dumps({"audio_filepath": "a.wav", "duration": 1.0, "kind": "sound", "offset": 0.0})
    (tmp_path / "manifest.jsonl").write_text(f"{line}\n" * 400_000)
    code = "import sys; from uniaudio.tokenize_farm import scan; scan._PARALLEL_BYTES = 1; "
    code += "scan.scan_manifest(sys.argv[1], seed=0, processes=2)"
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "manifest.jsonl")], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(_session(driver.pid)) < 4 and time.monotonic() < deadline:  # with the resource tracker, the server and its workers
        assert driver.poll() is None, "it ended before its workers were seen"
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    while _session(driver.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _session(driver.pid)
