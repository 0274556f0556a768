"""WordNet's examples read aloud: which sentences are taken, that each is read once by the voice its words draw, and the voices."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus_builders import put

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.corpus import synthesis
from uniaudio.tokenize_farm.corpus.build import SOURCES
from uniaudio.tokenize_farm.corpus.sources import read

NOUNS = (
    '00001 03 n 01 apple 0 001 @ 2 n 0000 | a fruit; "she ate  a whole apple"; "too short"; "he paid $2 for the apple"  \n'
    '00002 03 n 01 pear 0 001 @ 2 n 0000 | a fruit; "the pears fell into the grass"; "she ate a whole apple"\n'
)


def packages(folder: Path) -> dict[str, Path]:
    files = {f"usr/share/wordnet/data.{part}": NOUNS.encode() if part == "noun" else b"" for part in ("noun", "verb", "adj", "adv")}
    assert all(SOURCES["read-en"].wanted(name) for name in (*files, "usr/lib/x86_64-linux-gnu/libflite_cmu_us_slt.so.2.2"))
    return {"wordnet-base": put(folder / "wordnet-base", files), "libflite1": folder / "libflite1", "made": folder / "made"}


def test_sentences_are_plain_words_and_come_once(tmp_path: Path) -> None:
    assert read.sentences(packages(tmp_path)["wordnet-base"]) == ["she ate a whole apple", "the pears fell into the grass"]


def test_each_sentence_is_read_once_and_what_is_there_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def speaker() -> Callable[[str], np.ndarray]:
        return lambda text: said.append(text) or np.full(1_600, len(text) / 100, np.float32)  # type: ignore[func-returns-value]

    monkeypatch.setattr(read, "hibari_voice", speaker)
    monkeypatch.setattr(read, "flite_voice", lambda package, name: speaker())
    recordings = list(SOURCES["read-en"].read(packages(tmp_path)))
    assert sorted(said) == ["she ate a whole apple", "the pears fell into the grass"]
    for recording in recordings:
        assert recording.text is not None and recording.speaker in read.SHARES and recording.language == "en"
        assert recording.name.startswith(f"read/{recording.speaker}/") and recording.more == {"gender": read.GENDERS[recording.speaker]}
        assert recording.licence == f"made by {'flite' if 'flite' in recording.speaker else 'hibari-tts'}"
        assert soundfile.read(recording.path)[0][0] == pytest.approx(len(recording.text) / 100, abs=1e-4)
    assert list(SOURCES["read-en"].read(packages(tmp_path))) == recordings
    assert len(said) == 2


def test_hibari_speaks_the_same_twice_at_16_khz() -> None:
    voice = synthesis.hibari_voice()
    first = voice("the pears fell into the grass")
    assert first.dtype == np.float32 and 16_000 < len(first) < 64_000 and 0.05 < np.abs(first).max() <= 1.0
    assert np.array_equal(first, voice("the pears fell into the grass"))


def test_a_voice_that_is_not_there_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="lacks a library.*--source"):
        synthesis.flite_voice(tmp_path, "slt")
    put(tmp_path, {f"usr/lib/any/{name}.so.1": b"no library" for name in (*synthesis._PARTS, "libflite_cmu_us_slt")})
    with pytest.raises(UserError, match="voice slt cannot be loaded"):
        synthesis.flite_voice(tmp_path, "slt")
    monkeypatch.setattr(synthesis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs hibari-tts"):
        synthesis.hibari_voice()
