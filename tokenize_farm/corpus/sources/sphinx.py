"""Test recordings of PocketSphinx: an English audiobook and read playing cards, with transcriptions. All held out."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from uniaudio.tokenize_farm.corpus.source import Recording, Source

_LINE = re.compile(r"<s>(.*)</s>\s*\(([\w-]+)\)")
_FOLDERS = {"librivox": ("transcription", "librivox-austen"), "cards": ("cards.transcription", "cmu-cards")}


def _read(folders: Mapping[str, Path]) -> Iterator[Recording]:
    root = folders["pocketsphinx-testdata"] / "usr/share/pocketsphinx/test/data"
    for folder, (transcription, speaker) in sorted(_FOLDERS.items()):
        for text, name in _LINE.findall((root / folder / transcription).read_text(encoding="utf-8")):
            yield Recording(
                path=root / folder / f"{name}.wav",
                name=f"{folder}/{name}",
                kind="speech",
                text=" ".join(text.split()),
                language="en",
                speaker=speaker,
                licence="BSD-2",
            )


SOURCES = [Source("sphinx", ("pocketsphinx-testdata",), _read, texts=("*transcription",))]
