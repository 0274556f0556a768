"""Speech made into song: WORLD takes a recording apart, its vowels are held over notes, its pitch follows a melody, and it is put together.

The voice stays the recorded one; when each phone is sung and which note it has is known exactly.
"""
# ruff: noqa: RUF001 - IPA letters are meant

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.tokenizers.alignment import Sound
from uniaudio.tokenize_farm.tokenizers.midi import CONCERT_NOTE, CONCERT_PITCH
from uniaudio.tokenize_farm.tokenizers.resources import require

VOWELS = frozenset("aɑæʌɔəɛɝɚeɪioʊuyøœɐɜ")
_STEP_MS = 5.0
_SCALE = (0, 2, 4, 7, 9)  # major pentatonic: any walk on it is a tune
_BEATS = (0.2, 0.3, 0.3, 0.45, 0.6)  # seconds of a vowel
_LONGEST_PAUSE = 0.3
_VIBRATO_HZ, _VIBRATO_CENTS, _VIBRATO_AFTER = 5.5, 30.0, 0.15
_GLIDE = 8  # steps over which one note passes into the next
_TICKS_PER_SECOND = 960  # 480 a quarter at 120 quarters a minute


@dataclass(frozen=True)
class Note:
    """A MIDI note from `start` to `end` seconds."""

    number: int
    start: float
    end: float


@dataclass(frozen=True)
class Song:
    """samples (S,) float32 at 16 kHz; sounds and notes by its own time."""

    samples: np.ndarray
    sounds: list[Sound]
    notes: list[Note]


def is_vowel(phone: str) -> bool:
    """Whether a phone of the inventory can be held."""
    return phone.lstrip("ˈˌ")[:1] in VOWELS


def sing(samples: np.ndarray, sounds: Sequence[Sound], draw: Draw) -> Song | None:
    """A song of the words spoken in samples (S,), whose `sounds` are known; None where nothing voiced is in them.

    Raises:
        MissingDependency: no pyworld.
    """
    require("pyworld", needed_for="singing (package pyworld-prebuilt)")
    import pyworld

    speech = samples.astype(np.float64)
    coarse, times = pyworld.dio(speech, SAMPLE_RATE, f0_floor=60.0, f0_ceil=500.0, frame_period=_STEP_MS)
    f0 = pyworld.stonemask(speech, coarse, times, SAMPLE_RATE)
    voiced = f0[f0 > 0]
    if len(voiced) < 20 or not any(is_vowel(sound.phone) for sound in sounds):
        return None
    envelope = pyworld.cheaptrick(speech, f0, times, SAMPLE_RATE)
    noise = pyworld.d4c(speech, f0, times, SAMPLE_RATE)
    sung, source = _stretched(sounds, len(samples) / SAMPLE_RATE, draw)
    steps = np.clip(np.round(source * 1000 / _STEP_MS).astype(int), 0, len(f0) - 1)
    notes = _melody(sung, float(np.median(voiced)), draw)
    pitch = _pitch(notes, len(steps))
    held = np.zeros(len(steps), bool)
    for sound in sung:
        if is_vowel(sound.phone):
            held[round(sound.start * 1000 / _STEP_MS) : round(sound.end * 1000 / _STEP_MS)] = True
    sung_f0 = np.where((f0[steps] > 0) | held, pitch, 0.0)
    made = pyworld.synthesize(sung_f0, np.ascontiguousarray(envelope[steps]), np.ascontiguousarray(noise[steps]), SAMPLE_RATE, _STEP_MS)
    return Song((made / max(1.0, np.abs(made).max())).astype(np.float32), sung, notes)


def _stretched(sounds: Sequence[Sound], seconds: float, draw: Draw) -> tuple[list[Sound], np.ndarray]:
    """The sounds by the song's time, and for each step of the song the second of the speech that it comes from."""
    sung: list[Sound] = []
    pieces: list[np.ndarray] = []
    at, spoken = 0.0, 0.0
    for sound in sounds:
        pause = sound.start - spoken
        at = _append(pieces, at, spoken, sound.start, min(pause, _LONGEST_PAUSE))
        length = sound.end - sound.start
        if is_vowel(sound.phone):
            length = max(length, draw.choose(_BEATS))
        start = at
        at = _append(pieces, at, sound.start, sound.end, length)
        sung.append(replace(sound, start=start, end=at))
        spoken = sound.end
    _append(pieces, at, spoken, seconds, min(max(0.0, seconds - spoken), _LONGEST_PAUSE))
    return sung, np.concatenate(pieces)


def _append(pieces: list[np.ndarray], at: float, start: float, end: float, length: float) -> float:
    """Spreads speech from `start` to `end` over `length` seconds; returns where that ends, on a step."""
    steps = max(0, round(length * 1000 / _STEP_MS))
    pieces.append(start + (np.arange(steps) + 0.5) / max(1, steps) * (end - start))
    return at + steps * _STEP_MS / 1000


def _melody(sung: Sequence[Sound], speech_hz: float, draw: Draw) -> list[Note]:
    """A note a vowel, with the consonants that lead up to it, and those behind it where a pause follows; a walk near the speech's pitch."""
    root = round(CONCERT_NOTE + 12 * np.log2(speech_hz / CONCERT_PITCH))
    degree = 0
    notes: list[Note] = []
    start: float | None = None
    for index, sound in enumerate(sung):
        start = sound.start if start is None else start
        pause = index + 1 == len(sung) or sung[index + 1].start - sound.end > _STEP_MS / 1000
        if is_vowel(sound.phone):
            degree = max(-4, min(5, degree + draw.below(5) - 2))
            notes.append(Note(root + 12 * (degree // 5) + _SCALE[degree % 5], start, sound.end))
            start = None
        elif pause:
            if notes:
                notes[-1] = replace(notes[-1], end=sound.end)
            start = None
    return notes


def _pitch(notes: Sequence[Note], steps: int) -> np.ndarray:
    """Hz of each step: notes that glide into each other, with vibrato once they are held; between notes the last one's."""
    times = np.arange(steps) * _STEP_MS / 1000
    numbers = np.full(steps, float(notes[0].number))
    age = np.zeros(steps)
    for note in notes:
        numbers[times >= note.start] = note.number
        inside = times >= note.start
        age[inside] = times[inside] - note.start
    smooth = np.convolve(np.pad(numbers, _GLIDE // 2, mode="edge"), np.ones(_GLIDE) / _GLIDE, mode="same")[_GLIDE // 2 :][:steps]
    vibrato = np.where(age > _VIBRATO_AFTER, np.sin(2 * np.pi * _VIBRATO_HZ * times), 0.0) * _VIBRATO_CENTS / 100
    return CONCERT_PITCH * 2 ** ((smooth + vibrato - CONCERT_NOTE) / 12)


def write_midi(path: Path, notes: Sequence[Note]) -> None:
    """The notes as a .mid file."""
    import mido

    track, at = mido.MidiTrack(), 0
    for note in notes:
        start, end = (round(time * _TICKS_PER_SECOND) for time in (note.start, note.end))
        track.append(mido.Message("note_on", note=note.number, velocity=64, time=max(0, start - at)))
        track.append(mido.Message("note_off", note=note.number, time=end - max(start, at)))
        at = end
    file = mido.MidiFile(ticks_per_beat=480)
    file.tracks.append(track)
    file.save(path)


def ctm(name: str, sounds: Sequence[Sound]) -> str:
    """The sounds as lines of a CTM file."""
    return "".join(f"{name} 1 {sound.start:.4f} {sound.end - sound.start:.4f} {sound.phone}\n" for sound in sounds)
