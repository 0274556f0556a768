"""The tables of token ids: sizes, ranges, names, fingerprints."""

from pathlib import Path

import pytest

from uniaudio.configs.load import CONFIG_ROOT
from uniaudio.errors import UserError
from uniaudio.pretrain.data.vocabulary import Vocabulary, load_vocabulary

TABLES = ("paper", "released")


def test_sizes_are_the_published_ones() -> None:
    assert (load_vocabulary("paper").size, load_vocabulary("released").size) == (4212, 4213)


def test_released_specials_keep_the_ids_of_the_checkpoint() -> None:
    table = load_vocabulary("released")
    ids = {
        "<pad>": 0,
        "<continuous_token>": 1,
        "<start>": 2,
        "<end>": 3,
        "<audio_start>": 8,
        "<tts_task>": 18,
        "<mega_global>": 23,
        "<speech_edit_task>": 52,
    }
    assert {name: table.special(name) for name in ids} == ids
    assert len(table.specials) == 53
    assert table.audio_mask == 128 + 3072
    assert [table.modality(name).start for name in ("phone", "semantic", "sing_phone", "sing_midi")] == [3201, 3507, 4007, 4075]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("num_codebooks", [1, 3, 8])
def test_ranges_cover_every_id_once(name: str, num_codebooks: int) -> None:
    table = load_vocabulary(name, num_codebooks)
    ids = list(range(table.reserved))
    for modality, *_ in table.ranges:
        assert table.modality(modality).start == len(ids)
        ids += table.modality(modality)
    assert ids == list(range(table.size))
    levels = [token for level in range(table.num_audio_levels) for token in table.audio_level(level)]
    assert levels == list(table.modality("audio"))[: 1024 * max(3, num_codebooks)]
    assert len({table.token_name(token) for token in ids}) == table.size


def test_more_codebooks_widen_audio_and_fewer_do_not() -> None:
    assert load_vocabulary("paper", 8).size == 4212 + 5 * 1024
    assert load_vocabulary("paper", 1).fingerprint == load_vocabulary("paper").fingerprint


def test_token_names() -> None:
    table = load_vocabulary("released")
    names = {2: "<start>", 57: "<unused_57>", 128: "audio.0:0", 128 + 1024 + 17: "audio.1:17", 3200: "audio:mask", 3201 + 12: "phone:12"}
    assert {token: table.token_name(token) for token in names} == names


@pytest.mark.parametrize("name", TABLES)
def test_table_survives_json_form(name: str) -> None:
    table = load_vocabulary(name)
    assert Vocabulary.from_table(table.to_table()) == table


def test_fingerprint_does_not_depend_on_the_name_but_on_the_order(tmp_path: Path) -> None:
    text = (CONFIG_ROOT / "vocabularies/paper.yaml").read_text()
    (tmp_path / "same.yaml").write_text(text)
    (tmp_path / "moved.yaml").write_text(text.replace("<start>, <end>", "<end>, <start>"))
    paper, same, moved = (load_vocabulary(str(name)) for name in ("paper", tmp_path / "same.yaml", tmp_path / "moved.yaml"))
    assert paper.fingerprint == same.fingerprint != moved.fingerprint
    assert paper.compare(same) == ""
    assert paper.compare(moved).splitlines() == ["paper     | moved", "2 <start> | 2 <end>", "3 <end>   | 3 <start>"]


def test_a_mismatch_shows_both_tables() -> None:
    with pytest.raises(UserError, match=r"the checkpoint was made with another vocabulary: 53 - \(here: 53 <audio_mask>\)") as caught:
        load_vocabulary("paper").require_same(load_vocabulary("released"), what="the checkpoint")
    assert "phone 3200..3505 x1      | phone 3201..3506 x1" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: table.special("<strat>"), "no special token of that name.*<strat>"),
        (lambda table: table.modality("video"), "no such modality.*video"),
        (lambda table: table.audio_level(3), r"no such audio level.*0\.\.2"),
        (lambda table: table.token_name(4212), r"no such id.*0\.\.4211"),
        (lambda table: Vocabulary.from_table({"name": "x"}), "not a vocabulary table"),
        (lambda table: load_vocabulary("papre"), "allowed: extended, paper, released"),
    ],
)
def test_faults_name_what_was_seen(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(load_vocabulary("paper"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reserved: 128", "reserved: 9", "reserved is 9"),
        ("<start>, <end>", "<start>, <start>", "stands twice"),
        ("name: audio", "name: sound", "named audio"),
        ("audio_mask: <audio_mask>", "audio_mask: <gap>", "neither audio nor a special token"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text((CONFIG_ROOT / "vocabularies/paper.yaml").read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        load_vocabulary(str(path))
