"""Work units: a pure function of the manifest."""

from pathlib import Path

import pytest

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.schema import valid_key
from uniaudio.tokenize_farm.units import assign_splits, clip_key, plan_units


def make_row(number: int, **fields: object) -> ManifestRow:
    return ManifestRow(id=f"clip{number}", audio_filepath=f"/corpus/{number}.wav", **fields)


def make_config(**fields: object) -> FarmConfig:
    base = {"manifest": "/corpus/manifest.jsonl", "output_dir": "/out", "tokenizers": {"midi": {"name": "f0"}}, "clips_per_unit": 4}
    return FarmConfig.model_validate(base | fields)


def test_units_hold_every_row_once_in_the_manifests_order() -> None:
    rows = [make_row(i, speaker=f"s{i % 20}") for i in range(50)]
    units = plan_units(rows, make_config(held_out_fraction=0.2), {"midi": "f0/1"})
    for split in ("train", "valid"):
        mine = [unit for unit in units if unit.split == split]
        assert [unit.number for unit in mine] == list(range(len(mine))) and len(mine) > 0
        assert all(len(unit.rows) == 4 for unit in mine[:-1])
        ids = [row.id for unit in mine for row in unit.rows]
        assert ids == [row.id for row in rows if row.id in set(ids)]
    assert sorted(row.id for unit in units for row in unit.rows) == sorted(row.id for row in rows)


def test_same_manifest_gives_the_same_units() -> None:
    rows = [make_row(i) for i in range(30)]
    assert plan_units(rows, make_config(), {"midi": "f0/1"}) == plan_units(iter(rows), make_config(), {"midi": "f0/1"})


@pytest.mark.parametrize("change", [{"filters": {"min_seconds": 0.5}}, {"seed": 1}])
def test_fingerprint_follows_the_config(change: dict) -> None:
    rows = [make_row(i, split="train") for i in range(3)]
    before = plan_units(rows, make_config(), {"midi": "f0/1"})[0].fingerprint
    assert plan_units(rows, make_config(**change), {"midi": "f0/1"})[0].fingerprint != before
    assert plan_units(rows, make_config(), {"midi": "f0/2"})[0].fingerprint != before
    assert plan_units([*rows[:2], make_row(2, split="train", text="x")], make_config(), {"midi": "f0/1"})[0].fingerprint != before


def test_fingerprint_survives_a_moved_corpus() -> None:
    here = plan_units([make_row(1)], make_config(), {})[0]
    row = ManifestRow(id="clip1", audio_filepath="/elsewhere/1.wav")
    assert plan_units([row], make_config(manifest="/elsewhere/manifest.jsonl"), {})[0].fingerprint == here.fingerprint


def test_a_speaker_never_lies_in_both_splits() -> None:
    rows = [make_row(i, speaker=f"s{i % 30}", kind="singing" if i % 2 else "speech") for i in range(300)]
    splits = assign_splits(rows, held_out_fraction=0.2, seed=0)
    held_out = {row.speaker for row, split in zip(rows, splits) if split == "valid"}
    assert 0 < len(held_out) < 30
    assert not held_out & {row.speaker for row, split in zip(rows, splits) if split == "train"}


def test_a_rows_own_split_wins() -> None:
    rows = [make_row(i, split="valid" if i < 5 else "train") for i in range(10)]
    assert assign_splits(rows, held_out_fraction=0.5, seed=0) == ["valid"] * 5 + ["train"] * 5


def test_every_kind_has_a_held_out_clip_where_it_can() -> None:
    rows = [make_row(i, kind="speech", speaker="ab"[i > 7]) for i in range(10)] + [make_row(20 + i, kind="sound") for i in range(3)]
    rows.append(make_row(99, kind="music"))
    splits = assign_splits(rows, held_out_fraction=0.001, seed=0)
    assert [split for row, split in zip(rows, splits) if row.kind == "speech"] == ["train"] * 8 + ["valid"] * 2
    assert sorted(split for row, split in zip(rows, splits) if row.kind == "sound") == ["train", "train", "valid"]
    assert splits[-1] == "train"  # a single recording stays in training
    assert set(assign_splits(rows, held_out_fraction=0.0, seed=0)) == {"train"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([make_row(1, split="test")], "unknown split.*test.*train, valid"),
        ([make_row(1), make_row(1)], "one key"),
    ],
)
def test_faults_of_the_manifest_are_named(rows: list[ManifestRow], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_units(rows, make_config(), {})


def test_any_id_becomes_a_valid_key() -> None:
    ids = ["plain_1", "a b", "../x", "é" * 300, "a/b.c"]
    keys = [clip_key(ManifestRow(id=name, audio_filepath="x.wav")) for name in ids]
    assert keys[0] == "plain_1" and all(valid_key(key) for key in keys) and len(set(keys)) == len(ids)


def test_a_relative_manifest_path_is_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = ManifestRow(id="a", audio_filepath=str(tmp_path / "a.wav"))
    absolute = plan_units([row], make_config(manifest=str(tmp_path / "m.jsonl")), {})
    assert plan_units([row], make_config(manifest="m.jsonl"), {}) == absolute
