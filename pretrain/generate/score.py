"""Singing without a recording: lyrics and the notes of a MIDI file -> sung phones with their frames, and the pitch of each frame.

Syllables take the notes in order; where there are more notes than syllables, neighbours share a syllable. A consonant takes little of its
syllable's time, the vowel the rest.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.aligned import SingPhoneTokenizer
from uniaudio.tokenize_farm.tokenizers.alignment import FRAMES_PER_SECOND, Sound, frames_of
from uniaudio.tokenize_farm.tokenizers.espeak import knows_language
from uniaudio.tokenize_farm.tokenizers.midi import BadMidi, Note, notes
from uniaudio.tokenize_farm.tokenizers.phones import text_to_phones, words_of
from uniaudio.tokenize_farm.tokenizers.protocol import SAMPLES_PER_FRAME, Clip, Tokenizer

CONSONANT_SECONDS = 0.06
_VOWELS = set("aeiouyæɑɐəɚɛɜɝɘɤɨɪɔœɒøɵʊʉʌɯʏᵻɞɶ")  # noqa: RUF001 - IPA letters are meant


def sung_views(text: str, language: str | None, midi: Path, tokenizers: Mapping[str, Tokenizer]) -> dict[str, np.ndarray]:
    """`phone.singing` (P, 2) and `midi` (T,), T frames from the file's start to its last note.

    Raises:
        UserError: no MIDI file, no notes, nothing to sing, or more syllables than notes.
    """
    try:
        played = notes(midi)
    except BadMidi as error:
        raise UserError("--midi: cannot use the notes", seen=error, remedy="give another file") from error
    if language and not knows_language(language):
        raise UserError("no phonemes in this language", seen=language, allowed="a language of espeak-ng: en, fr, de, cmn, ...")
    words = [syllables(word) for word in words_of(text_to_phones(text, language or "en"))]
    count = sum(map(len, words))
    if not 1 <= count <= len(played):
        raise UserError("each syllable needs a note", seen=f"{count} syllables, {len(played)} notes", remedy="other words, or more notes")
    frames = int(np.ceil(played[-1].end * FRAMES_PER_SECOND))
    tokenizer = tokenizers["phone.singing"]
    assert isinstance(tokenizer, SingPhoneTokenizer)
    row = ManifestRow(id="input", audio_filepath=str(midi), kind="singing", midi=midi.name)
    pitches = tokenizers["midi"].encode([Clip(row, np.zeros(frames * SAMPLES_PER_FRAME, np.float32))])[0]
    if pitches is None:
        raise UserError("the tokenizer of view midi reads no MIDI file", seen=midi, remedy="sing after a recording: --source")
    return {"phone.singing": tokenizer.ids(frames_of(sing(words, played), frames)), "midi": pitches}


def syllables(word: list[str]) -> list[list[str]]:
    """A word's phones in parts with one vowel each; the last part takes the consonants behind its vowel."""
    parts: list[list[str]] = [[]]
    for phone in word:
        parts[-1].append(phone)
        if is_vowel(phone):
            parts.append([])
    if len(parts) > 1:
        behind = parts.pop()
        parts[-1] += behind
    return [part for part in parts if part]


def is_vowel(phone: str) -> bool:
    """Whether a phone of the inventory can carry a note."""
    return phone.lstrip("ˈˌ")[:1] in _VOWELS


def sing(words: list[list[list[str]]], played: list[Note]) -> list[Sound]:
    """The sounds of all syllables over the notes."""
    parts = [(part, place == 0) for word in words for place, part in enumerate(word)]
    sounds = []
    for number, (part, opens) in enumerate(parts):
        own = played[number * len(played) // len(parts) : (number + 1) * len(played) // len(parts)]
        start, end = own[0].start, own[-1].end
        vowels = max(1, sum(map(is_vowel, part)))
        short = min(CONSONANT_SECONDS, (end - start) / (2 * len(part)))
        long = (end - start - short * (len(part) - vowels)) / vowels
        for place, phone in enumerate(part):
            after = start + (long if is_vowel(phone) or len(part) == vowels else short)
            sounds.append(Sound(phone, start, after, opens and place == 0))
            start = after
    return sounds
