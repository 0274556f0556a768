"""Songs made of English recordings (corpus.singing): wav, notes as .mid, phones as .ctm. No package has recorded songs with notes."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from uniaudio.atomic import publish_bytes, publish_file
from uniaudio.tokenize_farm.audio import audio_seconds, load_audio, save_wav
from uniaudio.tokenize_farm.corpus.singing import ctm, sing, write_midi
from uniaudio.tokenize_farm.corpus.source import MADE, Recording, Source
from uniaudio.tokenize_farm.corpus.sources import asterisk
from uniaudio.tokenize_farm.corpus.split import bucket
from uniaudio.tokenize_farm.manifest import make_id
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.tokenizers.phones import text_to_phones, words_of
from uniaudio.tokenize_farm.tokenizers.sphinx import SphinxAligner

PERCENT = 50  # of the recordings that are long enough
_SECONDS = (1.2, 8.0)


def _read(folders: Mapping[str, Path]) -> Iterator[Recording]:
    aligner = SphinxAligner()
    for spoken in asterisk.voice("en").read(folders):
        if bucket(f"sung/{spoken.name}") >= PERCENT or not _SECONDS[0] <= audio_seconds(spoken.path) <= _SECONDS[1]:
            continue
        path = folders[MADE] / f"{make_id(spoken.name)}.wav"
        if path.is_file() or _make(spoken, path, aligner):
            name = f"sung/{spoken.name}"
            made_of = ("asterisk-en", spoken.name)
            more = {"alignment": path.with_suffix(".ctm").name}
            yield replace(spoken, path=path, name=name, kind="singing", midi=path.with_suffix(".mid").name, more=more, made_of=made_of)


def _make(spoken: Recording, path: Path, aligner: SphinxAligner) -> bool:
    """Writes notes, phones and, last, the sound; False where the words cannot be found in the recording."""
    samples = load_audio(spoken.path)
    sounds = aligner.align(words_of(text_to_phones(spoken.text or "", "en")), samples)
    song = sing(samples, sounds, Draw("sung", spoken.name)) if sounds else None
    if song is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(path.with_suffix(".mid")) as temporary:
        write_midi(temporary, song.notes)
    publish_bytes(path.with_suffix(".ctm"), ctm(path.stem, song.sounds).encode())
    save_wav(path, song.samples)
    return True


SOURCES = [Source("sung-en", asterisk.packages_of("en"), _read, texts=("*/core-sounds-*.txt.gz",))]
