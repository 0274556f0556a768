"""Speech made into song: the notes are heard, the phones lie where the file says, and the sources' rows say so."""

# ruff: noqa: RUF001 - IPA letters are meant

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyworld
import soundfile
from corpus_builders import put

from uniaudio.tokenize_farm.corpus import singing
from uniaudio.tokenize_farm.corpus.build import SOURCES
from uniaudio.tokenize_farm.corpus.source import MADE, Recording, manifest_rows
from uniaudio.tokenize_farm.corpus.sources import asterisk, voices
from uniaudio.tokenize_farm.manifest import read_manifest, write_manifest
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.tokenizers.aligned import SingPhoneTokenizer
from uniaudio.tokenize_farm.tokenizers.alignment import Sound
from uniaudio.tokenize_farm.tokenizers.espeak import speak
from uniaudio.tokenize_farm.tokenizers.f0 import F0Tokenizer, hz_from_values
from uniaudio.tokenize_farm.tokenizers.midi import pitches
from uniaudio.tokenize_farm.tokenizers.protocol import Clip, num_frames

SENTENCE = "We are all away now, and you will hear our own tune."


def buzz(seconds: float) -> np.ndarray:
    t = np.arange(int(seconds * 16_000)) / 16_000
    return (0.1 * sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 12))).astype(np.float32)


def test_vowels_are_held_and_sung_on_their_notes(tmp_path: Path) -> None:
    sounds = [Sound("m", 0.1, 0.2, True), Sound("ɑː", 0.2, 0.35, False), Sound("n", 0.35, 0.45, True), Sound("iː", 0.45, 0.7, False)]
    song = singing.sing(buzz(1.0), sounds, Draw("test"))
    assert song is not None and [sound.phone for sound in song.sounds] == [sound.phone for sound in sounds]
    assert [round(sound.end - sound.start, 3) for sound in song.sounds[::2]] == [0.1, 0.1], "consonants keep their length"
    assert song.sounds[1].end - song.sounds[1].start >= 0.2 and song.sounds[3].end - song.sounds[3].start >= 0.25
    assert len(song.notes) == 2 and song.notes[0].start == song.sounds[0].start and song.notes[1].end == song.sounds[3].end
    singing.write_midi(tmp_path / "a.mid", song.notes)
    f0, times = pyworld.dio(song.samples.astype(np.float64), 16_000, frame_period=20.0)
    wanted = pitches(tmp_path / "a.mid", times)
    both = (f0 > 0) & (wanted > 0)
    assert both.mean() > 0.5 and np.median(np.abs(1200 * np.log2(f0[both] / wanted[both]))) < 40
    assert singing.sing(buzz(1.0), sounds[:1], Draw("x")) is None, "nothing to hold"
    assert singing.sing(np.zeros(16_000, np.float32), sounds, Draw("x")) is None, "nothing voiced"


def test_sung_rows_give_phones_and_notes_frame_by_frame(tmp_path: Path, monkeypatch) -> None:
    texts, audio = asterisk.packages_of("en")
    listed = gzip.compress("".join(f"w{i}: {SENTENCE}\n" for i in range(4)).encode())
    rights = {f"usr/share/doc/{audio}/copyright": b"Files: *\nLicense: CC0\n"}
    folders = {
        texts: put(tmp_path / "t", {f"usr/share/doc/{texts}/core-sounds-en.txt.gz": listed}),
        audio: put(tmp_path / "a", rights),
        MADE: tmp_path / "made",
    }
    person = folders[audio] / "usr/share/asterisk/sounds/en_US_f_Allison"
    person.mkdir(parents=True)
    for i in range(4):
        soundfile.write(person / f"w{i}.wav", speak(SENTENCE, "en"), 16_000)
    found = list(SOURCES["sung-en"].read(folders))
    assert 0 < len(found) < 4 and {path.suffix for path in folders[MADE].iterdir()} == {".wav", ".mid", ".ctm"}
    write_manifest(tmp_path / "m.jsonl", manifest_rows("sung-en", found, origin="x", dropped=Counter(), seen=set()))
    row = next(iter(read_manifest(tmp_path / "m.jsonl")))
    assert (row.kind, row.speaker) == ("singing", "asterisk-allison") and row.midi == f"{Path(row.audio_filepath).stem}.mid"
    clip = Clip(row, soundfile.read(row.audio_filepath, dtype="float32")[0])
    [phones], [notes] = SingPhoneTokenizer({"aligner": "none"}).encode([clip]), F0Tokenizer({}).encode([clip])
    frames = num_frames(clip.samples)
    assert phones[:, 1].sum() == len(notes) == frames
    held = np.repeat(phones[:, 0], phones[:, 1])
    assert (hz_from_values(notes)[held > 0] > 0).mean() > 0.9, "where a phone is sung there is a note"
    before = {path.name: path.stat().st_mtime_ns for path in folders[MADE].iterdir()}
    assert [recording.path for recording in SOURCES["sung-en"].read(folders)] == [recording.path for recording in found]
    assert before == {path.name: path.stat().st_mtime_ns for path in folders[MADE].iterdir()}, "what is made is not made again"


def test_voices_are_described_by_their_rows(tmp_path: Path) -> None:
    texts = asterisk.packages_of("en")[0]
    listed = gzip.compress("".join(f"key{i}: Please leave a message, number {i}.\n" for i in range(12)).encode())
    folders = {texts: put(tmp_path / "t", {f"usr/share/doc/{texts}/core-sounds-en.txt.gz": listed}), MADE: tmp_path / "made"}
    found = list(SOURCES["voices-en"].read(folders))
    assert 4 < len(found) <= 12 and len({recording.speaker for recording in found}) > 3
    lengths: dict[str, list[float]] = {}
    for recording in found:
        assert set(recording.more) == {"gender", "speed", "pitch"} and recording.path.is_file()
        lengths.setdefault(recording.more["speed"], []).append(soundfile.info(recording.path).duration)
    order = [speed for speed in voices.SPEEDS if speed in lengths]
    assert len(order) > 1 and min(lengths[order[0]]) > max(lengths[order[-1]]), "slower is longer"
    assert json.dumps(found[0].more)


def test_what_is_made_of_a_recording_lies_in_its_split(tmp_path: Path) -> None:
    """Nothing held out is trained on as a song."""
    speech = buzz(1.0)
    made, spoken = [], []
    for i in range(60):
        soundfile.write(tmp_path / f"{i}.wav", speech + np.float32(1e-3 * i), 16_000)
        recording = Recording(tmp_path / f"{i}.wav", f"en/w{i}", "speech", "CC0")
        spoken.append(recording)
        made.append(replace(recording, name=f"sung/en/w{i}", kind="singing", made_of=("asterisk-en", recording.name)))
    splits = []
    for source, recordings in (("asterisk-en", spoken), ("sung-en", made)):
        rows = manifest_rows(source, recordings, origin="x", dropped=Counter(), seen=set(), percent=30)
        splits.append([row.split for row in rows])
    assert splits[0] == splits[1] and set(splits[0]) == {"train", "valid"}
