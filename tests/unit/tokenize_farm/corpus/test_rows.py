"""Rows: lengths, parts, splits, choice and summary."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus_builders import g722_bytes, put, wav_bytes

from uniaudio.tokenize_farm.corpus.captions import describe, readable
from uniaudio.tokenize_farm.corpus.select import choose
from uniaudio.tokenize_farm.corpus.source import Recording, manifest_rows
from uniaudio.tokenize_farm.corpus.split import HELD_OUT_SPEAKERS, split_of
from uniaudio.tokenize_farm.corpus.summary import summarize, summary_table
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.schema import valid_key

GOLDEN_HELD_OUT = [13, 19, 33, 44, 47, 49, 58, 61, 77]


def recording(path: Path, name: str = "a", kind: str = "speech", **keys: str | None) -> Recording:
    return Recording(path=path, name=name, kind=kind, licence="CC0", **keys)


def rows_of(*recordings: Recording, **options: float) -> tuple[list[ManifestRow], Counter[str]]:
    dropped: Counter[str] = Counter()
    return list(manifest_rows("s", recordings, origin="debian:s 1", dropped=dropped, seen=set(), **options)), dropped


def many(count: int, seconds: float = 1.0, per_file: int = 1) -> list[ManifestRow]:
    return [
        ManifestRow(
            id=f"r{number}", audio_filepath=f"/f{number // per_file}", duration=seconds, offset=float(number % per_file), split="train"
        )
        for number in range(count)
    ]


def test_a_row_carries_everything_known(tmp_path: Path) -> None:
    put(tmp_path, {"a.g722": g722_bytes(1.5)})
    (row,), _ = rows_of(recording(tmp_path / "a.g722", text="hi", speaker="x", language="en"))
    assert (row.duration, row.text, row.speaker, row.language, row.licence, row.source) == (1.5, "hi", "x", "en", "CC0", "debian:s 1")
    assert valid_key(row.id)


def test_long_recordings_are_cut_into_equal_parts_that_cover_them(tmp_path: Path) -> None:
    put(tmp_path, {"a.wav": wav_bytes(7.0)})
    rows, _ = rows_of(recording(tmp_path / "a.wav", kind="music"), max_seconds=3.0)
    assert len(rows) == 3 and len({row.id for row in rows}) == 3 and len({row.split for row in rows}) == 1
    assert [row.offset for row in rows] == [0.0, 2.333, 4.667]
    assert sum(row.duration or 0 for row in rows) == pytest.approx(7.0, abs=0.01)


def test_a_recording_with_text_stays_whole(tmp_path: Path) -> None:
    put(tmp_path, {"a.wav": wav_bytes(7.0)})
    rows, _ = rows_of(recording(tmp_path / "a.wav", text="long"), max_seconds=3.0)
    assert [row.duration for row in rows] == [7.0]


def test_silent_parts_of_a_long_sound_are_left_out(tmp_path: Path) -> None:
    samples = np.zeros(8_000 * 6)
    samples[:8_000] = 0.5
    soundfile.write(tmp_path / "a.wav", samples, 8_000)
    rows, dropped = rows_of(recording(tmp_path / "a.wav", kind="sound"), max_seconds=2.0)
    assert [row.offset for row in rows] == [0.0] and dropped == {"silent": 2}


def test_bad_short_and_double_files_are_left_out_and_counted(tmp_path: Path) -> None:
    put(tmp_path, {"a.wav": wav_bytes(), "same.wav": wav_bytes(), "short.wav": wav_bytes(0.01), "text.wav": b"letter", "empty.wav": b""})
    names = ("a", "same", "short", "text", "empty", "absent")
    rows, dropped = rows_of(*(recording(tmp_path / f"{name}.wav", name) for name in names))
    assert len(rows) == 1
    assert dropped == {"duplicate": 1, "too_short": 1, "not_audio": 1, "empty": 1, "missing": 1}


def test_held_out_speakers_are_never_trained_on() -> None:
    for speaker in HELD_OUT_SPEAKERS:
        assert {split_of("s", str(number), kind="speech", speaker=speaker).name for number in range(50)} == {"valid"}


def test_about_five_percent_of_other_recordings_are_held_out_and_more_only_adds() -> None:
    names = [f"recording {number:04d} x" for number in range(2_000)]
    five = {name for name in names if split_of("s", name, kind="speech").name == "valid"}
    ten = {name for name in names if split_of("s", name, kind="speech", percent=10).name == "valid"}
    assert 70 <= len(five) <= 130 and 150 <= len(ten) <= 250 and five < ten
    assert split_of("s", next(iter(five)), kind="speech").held_out == "recording"


def test_the_split_never_changes() -> None:
    """Trained weights rely on it: a change here would let training see what was held out."""
    held_out = [number for number in range(100) if split_of("wesnoth", f"track{number} x", kind="music").name == "valid"]
    assert held_out == GOLDEN_HELD_OUT


def test_numbered_takes_of_a_sound_share_their_split() -> None:
    for number in range(200):
        assert len({split_of("s", f"door {number}x{take}", kind="sound").name for take in ("", "1", "-02", "_3")}) == 1


@pytest.mark.parametrize(("name", "words"), [("door2-open.ogg", "door open"), ("alien_Engine", "alien engine"), ("01", "")])
def test_names_read_as_words(name: str, words: str) -> None:
    assert readable(name) == words


def test_captions_take_compounds_apart_and_add_the_folder_where_it_helps() -> None:
    assert describe("alienmachinery5", ["ambience"]) == "ambience of alien machinery"
    assert describe("wood4", ["footsteps"]) == "footsteps, wood"
    assert describe("malehurt06", ["soldiers"]) == "man hurt"
    assert describe("civfemdeath01a") == "woman dying"
    assert describe("bullet-smg-5x", ["weapons"]) == "weapon: bullet smg"


def test_a_choice_has_the_minutes_asked_for_a_tenth_held_out_and_is_stable() -> None:
    rows = [row.model_copy(update={"split": "valid" if number % 5 == 0 else "train"}) for number, row in enumerate(many(500))]
    chosen = choose(rows, 3.0)
    assert [row.split for row in chosen].count("valid") == 18 and len(chosen) == 180
    assert chosen == choose(rows, 3.0) and chosen == sorted(chosen, key=rows.index)
    assert {row.id for row in chosen} < {row.id for row in choose(rows, 4.0)}


def test_a_choice_without_held_out_rows_holds_one_recording_out_whole() -> None:
    chosen = choose(many(30, seconds=10.0, per_file=6), 5.0)
    valid = {row.audio_filepath for row in chosen if row.split == "valid"}
    assert len(valid) == 1 and not valid & {row.audio_filepath for row in chosen if row.split == "train"}
    assert all(row.custom == {"held_out": "recording"} for row in chosen if row.split == "valid")


def test_of_speech_two_recordings_of_one_speaker_are_held_out() -> None:
    """Each is the other's prompt; one alone could not be evaluated on."""
    rows = [row.model_copy(update={"speaker": "b" if number else "a"}) for number, row in enumerate(many(6))]
    for first in ("train", "valid"):
        chosen = choose([row.model_copy(update={"split": first if number == 1 else "train"}) for number, row in enumerate(rows)], 5.0)
        held_out = [row.speaker for row in chosen if row.split == "valid"]
        assert held_out.count("b") >= 2 and "a" not in held_out
    assert [row.split for row in choose(rows[:4], 5.0)].count("valid") == 1, "three recordings of a speaker are too few for a pair"


def test_one_recording_alone_is_trained_on() -> None:
    assert [row.split for row in choose(many(1), 1.0)] == ["train"]


def test_a_choice_passes_over_too_short_and_too_long_rows() -> None:
    rows = [*many(1, seconds=0.1), *many(3, seconds=20.0)]
    assert choose(rows, 5.0) == []


def test_a_summary_counts_minutes_by_group() -> None:
    rows = [row.model_copy(update={"speaker": f"s{number % 2}", "licence": "CC0"}) for number, row in enumerate(many(3, seconds=30.0))]
    (group,) = summarize(rows)
    assert group == {"kind": "speech", "language": "", "split": "train", "clips": 3, "minutes": 1.5, "speakers": 2, "licences": ["CC0"]}
    assert summary_table([group], "t").row_count == 1
