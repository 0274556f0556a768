"""Lyrics and notes become sung phones that last as their notes do."""
# ruff: noqa: RUF001 - IPA letters are meant

from pathlib import Path

import numpy as np
import pytest

from uniaudio.errors import UserError
from uniaudio.pretrain.generate.score import sing, sung_views, syllables
from uniaudio.tokenize_farm.tokenizers.aligned import SingPhoneTokenizer
from uniaudio.tokenize_farm.tokenizers.f0 import F0Tokenizer
from uniaudio.tokenize_farm.tokenizers.midi import BadMidi, Note, notes

mido = pytest.importorskip("mido")
pytest.importorskip("pyworld")


@pytest.fixture
def song(tmp_path) -> Path:
    """Four quarter notes of half a second: the first two alike, without a pause between."""
    file, track = mido.MidiFile(ticks_per_beat=480), mido.MidiTrack()
    file.tracks.append(track)
    for number in (60, 60, 64, 67):
        track.append(mido.Message("note_on", note=number, velocity=80, time=0))
        track.append(mido.Message("note_off", note=number, time=480))
    file.save(tmp_path / "song.mid")
    return tmp_path / "song.mid"


def test_notes_alike_one_after_another_stay_two(song):
    assert notes(song) == [Note(0, 0.5, 60), Note(0.5, 1, 60), Note(1, 1.5, 64), Note(1.5, 2, 67)]


def test_words_part_at_their_vowels():
    assert syllables(["h", "ə", "l", "ˈoʊ"]) == [["h", "ə"], ["l", "ˈoʊ"]]
    assert syllables(["s", "t", "ɛ", "p", "s"]) == [["s", "t", "ɛ", "p", "s"]]
    assert syllables(["m"]) == [["m"]]


def test_the_vowel_takes_its_note_and_a_syllable_may_take_two(song):
    sounds = sing([[["l", "ɑː"], ["m", "i", "n"]]], notes(song))
    assert [sound.phone for sound in sounds] == ["l", "ɑː", "m", "i", "n"]
    assert [sound.opens_word for sound in sounds] == [True, False, False, False, False]
    assert (sounds[0].start, sounds[1].end, sounds[2].start, sounds[-1].end) == (0, pytest.approx(1), 1, pytest.approx(2))
    assert sounds[1].end - sounds[1].start == pytest.approx(0.94)


def test_lyrics_and_notes_become_views_of_one_length(song):
    tokenizers = {"phone.singing": SingPhoneTokenizer({"aligner": "none"}), "midi": F0Tokenizer({})}
    views = sung_views("hello you", "en", song, tokenizers)
    assert views["phone.singing"][:, 1].sum() == len(views["midi"]) == 100
    assert len(np.unique(views["midi"])) == 3
    with pytest.raises(UserError, match="each syllable needs a note | seen: 5 syllables, 4 notes"):
        sung_views("one two three four five", "en", song, tokenizers)
    with pytest.raises(UserError, match=r"--midi: cannot use the notes"):
        sung_views("hello", "en", song.with_name("nowhere.mid"), tokenizers)
    with pytest.raises(UserError, match="no phonemes in this language"):
        sung_views("hello", "xx", song, tokenizers)


def test_a_file_that_is_no_midi_is_told(tmp_path):
    (tmp_path / "a.mid").write_bytes(b"MThd nonsense")
    with pytest.raises(BadMidi, match="cannot be read"):
        notes(tmp_path / "a.mid")
