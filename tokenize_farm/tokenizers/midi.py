"""Notes of a .mid file: the pitch that is to be sung at each moment."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uniaudio.tokenize_farm.tokenizers.resources import require

CONCERT_PITCH, CONCERT_NOTE = 440.0, 69


class BadMidi(Exception):
    """A file that is no MIDI; the message says why."""


@dataclass(frozen=True)
class Note:
    """One note: seconds from the start of the file, and its pitch as MIDI counts it (69: 440 Hz)."""

    start: float
    end: float
    number: int


def notes(path: Path) -> list[Note]:
    """The notes in order, one at a time: a note ends at the latest where the next begins. The drums' channel is left out.

    Raises:
        BadMidi: no such file, or not a MIDI file.
        MissingDependency: no mido.
    """
    require("mido", needed_for="the notes of .mid files")
    import mido

    played: list[Note] = []
    begun: tuple[float, int] | None = None
    at = 0.0
    try:
        for message in mido.MidiFile(path, clip=True):
            at += message.time
            if message.type not in ("note_on", "note_off") or message.channel == 9:
                continue
            on = message.type == "note_on" and message.velocity > 0
            if begun is not None and (on or message.note == begun[1]):
                if at > begun[0]:
                    played.append(Note(begun[0], at, begun[1]))
                begun = None
            if on:
                begun = at, message.note
    except (OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise BadMidi(f"{path} cannot be read: {error or type(error).__name__}") from error
    return played


def pitches(path: Path, seconds: np.ndarray) -> np.ndarray:
    """Hz of the note that sounds at each of `seconds` (T,), 0 where none does; of several the one that began last.

    Tempo changes count; instruments and channels do not, but the drums' channel is left out.

    Raises:
        BadMidi: no such file, or not a MIDI file.
        MissingDependency: no mido.
    """
    require("mido", needed_for="the notes of .mid files")
    import mido

    hertz = np.zeros(len(seconds))
    held: list[int] = []
    at = 0.0
    try:
        for message in mido.MidiFile(path, clip=True):
            after = at + message.time
            if held:
                hertz[(seconds >= at) & (seconds < after)] = CONCERT_PITCH * 2 ** ((held[-1] - CONCERT_NOTE) / 12)
            at = after
            if message.type not in ("note_on", "note_off") or message.channel == 9:
                continue
            if message.note in held:
                held.remove(message.note)
            if message.type == "note_on" and message.velocity:
                held.append(message.note)
    except (OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise BadMidi(f"{path} cannot be read: {error or type(error).__name__}") from error
    return hertz
