"""The merged index: the same columns as the shards' own, kept up to date by reading only what is new, and refused where it is damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.cli import shards as shards_command
from uniaudio.tokenize_farm.index import list_shards, read_index
from uniaudio.tokenize_farm.index_build import current_table, index_folder
from uniaudio.tokenize_farm.index_table import COLUMNS, IndexTable, read_table, table_path
from uniaudio.tokenize_farm.schema import KINDS, TokenizedClip
from uniaudio.tokenize_farm.shard_writer import write_shard


def make_clip(number: int) -> TokenizedClip:
    rng = np.random.default_rng(number)
    count = 50 + number % 7
    views = {"audio": rng.integers(0, 1024, (count, 3 + number % 2)).astype(np.uint16)}
    if number % 3 == 0:
        views["text"] = rng.normal(size=(4, 8)).astype(np.float16)
    meta: dict[str, object] = {"id": f"clip {number}", "kind": KINDS[number % 2], "seconds": count / 50}
    if number % 4:
        meta["speaker"] = f"sprecher ü{number % 4}"
    return TokenizedClip(f"c-{number:0{1 + number % 5}d}", meta, views)


def make_shard(folder: Path, unit: int, clips: int = 6, split: str = "train", first: int | None = None) -> None:
    begin = unit * 10 if first is None else first
    write_shard(folder, split, unit, [make_clip(begin + number) for number in range(clips)], tokenizers={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for unit in (0, 3, 4):
        make_shard(tmp_path, unit)
    make_shard(tmp_path, 0, 2, "valid")
    return tmp_path


def check(table: IndexTable, folder: Path) -> None:
    """Every column against the shards' own indexes."""
    assert [table.shard_name(shard) for shard in range(table.num_shards)] == [paths.name for paths in list_shards(folder, table.split)]
    clip, speakers = 0, {}
    for shard, paths in enumerate(list_shards(folder, table.split)):
        index, sidecar = read_index(paths.index), paths.read_sidecar()
        assert table.tar_sha256[shard].tobytes().hex() == sidecar["tar_sha256"] and table.tar_bytes[shard] == sidecar["tar_bytes"]
        for place in range(len(index)):
            assert table.key(clip) == index.keys[place] and table.kinds[clip] == index.kinds[place]
            assert table.seconds[clip] == index.seconds[place] and table.shard_of(np.array([clip])) == [shard]
            name = str(index.speakers[place])
            assert (table.speakers[clip] == -1) == (name == "")
            assert speakers.setdefault(name, table.speakers[clip]) == table.speakers[clip]
            for view, number in table.view_numbers.items():
                has = index.has(place, view)
                column = index.view_number(view) if has else 0
                assert table.offsets[number, clip] == (index.offsets[place, column] if has else -1)
                assert [table.rows[number, clip], table.columns["columns"][number, clip]] == (
                    index.shapes[place, column].tolist() if has else [0, 0]
                )
            clip += 1
    assert clip == len(table)
    for voice, (start, stop) in enumerate(zip(table.voice_starts[:-1], table.voice_starts[1:])):
        members = table.voice_clips[start:stop]
        assert (table.voices[members] == voice).all() and (np.diff(members) > 0).all()
        assert len({(table.speakers[member], table.kinds[member]) for member in members}) == 1
    assert (table.voices >= 0).sum() == len(table.voice_clips) == (table.speakers >= 0).sum()
    for group in range(len(table.group_kinds)):
        members = np.flatnonzero(table.groups == group)
        assert len(members) == table.group_clips[group] and table.seconds[members].sum() == pytest.approx(table.group_seconds[group])
        for member in members:
            assert table.kinds[member] == table.group_kinds[group]
            assert [table.group_views[group] >> np.uint64(number) & np.uint64(1) for number in range(len(table.views))] == (
                table.rows[:, member] > 0
            ).tolist()
            voice = table.voices[member]
            assert table.group_company[group] == (voice >= 0 and table.voice_starts[voice + 1] - table.voice_starts[voice] > 1)


def test_table_holds_what_the_indexes_hold(folder: Path) -> None:
    made = index_folder(folder)
    assert {split: read for split, (_, read) in made.items()} == {"train": 3, "valid": 1}
    for split in ("train", "valid"):
        table, meta = read_table(table_path(folder, split), str(folder))
        check(table, folder)
        assert meta["split"] == split
        assert isinstance(table.offsets.base, np.ndarray), "a view of the file, not a copy"
        assert current_table(folder, split)[1] == 0


def test_only_new_and_changed_shards_are_read(folder: Path) -> None:
    index_folder(folder)
    make_shard(folder, 2)
    make_shard(folder, 9, 0)
    table, read = current_table(folder, "train")
    assert read == 2
    check(table, folder)
    assert index_folder(folder)["train"][1] == 2
    make_shard(folder, 3, 5, first=70)
    table, read = index_folder(folder)["train"]
    assert read == 1
    check(table, folder)
    for path in folder.glob("train-000002*"):
        path.unlink()
    table, read = current_table(folder, "train")
    assert read == 0 and table.num_shards == 4
    check(table, folder)


def test_order_of_making_changes_nothing_that_the_plan_reads(folder: Path, tmp_path: Path) -> None:
    once = current_table(folder, "train")[0]
    piecewise = tmp_path / "piecewise"
    for units in ("000004", "000000", "000003"):
        piecewise.mkdir(exist_ok=True)
        for path in folder.glob(f"train-{units}*"):
            shutil.copy(path, piecewise)
        index_folder(piecewise)
    table, read = current_table(piecewise, "train")
    assert read == 0 and table.fingerprint == once.fingerprint
    for name in ("kinds", "offsets", "rows", "groups", "group_views", "shard_starts"):
        np.testing.assert_array_equal(table.columns[name], once.columns[name])


def test_a_moved_folder_keeps_its_index(folder: Path, tmp_path: Path) -> None:
    index_folder(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    table, read = current_table(tmp_path / "elsewhere", "train")
    assert read == 0
    check(table, tmp_path / "elsewhere")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, "short"])
def test_a_damaged_file_is_named(folder: Path, damage: bytes | str) -> None:
    index_folder(folder)
    path = table_path(folder, "train")
    path.write_bytes(path.read_bytes()[:-2000] if damage == "short" else damage)
    with pytest.raises(UserError, match=r"train.safetensors: not a readable merged index.*delete it and run `uniaudio shards index`"):
        current_table(folder, "train")


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """Three whole shards with their merged index."""
    for unit in (0, 3, 4):
        make_shard(tmp_path, unit)
    index_folder(tmp_path)
    return tmp_path


def verify(folder: Path) -> tuple[int, str]:
    result = CliRunner().invoke(shards_command, ["verify", str(folder)])
    return result.exit_code, result.output


def damage_column(folder: Path, name: str) -> None:
    """Flips a bit in the middle of a column of the training split's file."""
    path = table_path(folder, "train")
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + header])[name]["data_offsets"]
    data[8 + header + (start + stop) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_verify_names_a_merged_index_with_a_flipped_bit(indexed: Path, name: str) -> None:
    damage_column(indexed, name)
    code, told = verify(indexed)
    assert code == 1 and "3 of 3 shards are whole" in told
    assert "train.safetensors: " in told and "remedy: delete it and run `uniaudio shards index` on its folder" in told
    table_path(indexed, "train").unlink()
    index_folder(indexed)
    assert verify(indexed)[0] == 0


@pytest.mark.parametrize("cut", [0, 100, -8, -2000])
def test_verify_names_a_merged_index_that_is_cut_short(indexed: Path, cut: int) -> None:
    path = table_path(indexed, "train")
    path.write_bytes(path.read_bytes()[:cut])
    code, told = verify(indexed)
    assert code == 1 and "index/train.safetensors: " in told and "not a readable merged index" in told


def test_verify_passes_an_index_that_lacks_new_shards_and_names_one_of_shards_made_again(indexed: Path) -> None:
    make_shard(indexed, 9)
    assert verify(indexed)[0] == 0
    make_shard(indexed, 3, 5, first=70)
    code, told = verify(indexed)
    assert code == 1 and "names a shard that is gone or was made again | seen: train-000003" in told
    index_folder(indexed)
    for path in indexed.glob("train-000000*"):
        path.unlink()
    index_folder(indexed)  # its speakers are numbered otherwise than in one made at once
    assert verify(indexed)[0] == 0


def test_an_index_that_cannot_be_written_is_one_line(folder: Path) -> None:
    (folder / "index").mkdir()
    (folder / "index" / "train.safetensors").mkdir()
    with pytest.raises(UserError, match="the merged index cannot be written"):
        index_folder(folder)


def test_any_safetensors_reader_reads_it(folder: Path) -> None:
    from safetensors.numpy import load_file

    index_folder(folder)
    columns = load_file(table_path(folder, "train"))
    np.testing.assert_array_equal(columns["rows"], current_table(folder, "train")[0].rows)


def test_command_says_what_it_read(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(shards_command, ["index", str(folder)])
    assert result.output.splitlines() == [
        "train: 18 clips in 3 shards, 3 of them read anew",
        "valid: 2 clips in 1 shards, 1 of them read anew",
    ]
    result = CliRunner().invoke(shards_command, ["index", str(folder), "--json"])
    assert json.loads(result.output)["train"] == {"shards": 3, "clips": 18, "read": 0}
    (tmp_path / "empty").mkdir()
    assert isinstance(CliRunner().invoke(shards_command, ["index", str(tmp_path / "empty")]).exception, UserError)
