"""Asterisk's telephone prompts: one professional speaker a voice, 16 kHz G.722, with their texts; and its music on hold."""

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path

from uniaudio.tokenize_farm.corpus.captions import readable
from uniaudio.tokenize_farm.corpus.licence import Licences
from uniaudio.tokenize_farm.corpus.source import Recording, Source, audio_files

VOICES = {"en": "Allison", "es": "Allison", "fr": "June", "it": "Carlo", "ru": "IvrvoiceRU"}


def read_texts(path: Path) -> dict[str, str]:
    """`key: text` lines; comments, silence and texts that describe a noise in brackets are left out."""
    texts = {}
    with gzip.open(path, "rt", encoding="utf-8-sig") as lines:
        for line in lines:
            key, _, text = line.strip().partition(":")
            text = " ".join(text.split())
            if text and not key.startswith((";", "silence/")) and not set(text) & set("[]()<>"):
                texts[key.strip()] = text
    return texts


def packages_of(language: str) -> tuple[str, str]:
    """The packages of a language: texts, recordings."""
    return f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-g722"


def voice(language: str) -> Source:
    """The recordings of one language."""
    texts_package, audio_package = packages_of(language)

    def read(folders: Mapping[str, Path]) -> Iterator[Recording]:
        texts = read_texts(folders[texts_package] / f"usr/share/doc/{texts_package}/core-sounds-{language}.txt.gz")
        licences = Licences(folders[audio_package] / f"usr/share/doc/{audio_package}/copyright")
        for person in sorted((folders[audio_package] / "usr/share/asterisk/sounds").iterdir()):
            for path in audio_files(person):
                key = path.relative_to(person).with_suffix("").as_posix()
                if key in texts:
                    yield Recording(
                        path=path,
                        name=f"{language}/{key}",
                        kind="speech",
                        text=texts[key],
                        language=language,
                        speaker=f"asterisk-{person.name.rsplit('_', 1)[-1].lower()}",
                        licence=licences.of(f"{language}-{key}"),
                    )

    return Source(f"asterisk-{language}", (texts_package, audio_package), read, texts=("*/core-sounds-*.txt.gz",))


def _read_music(folders: Mapping[str, Path]) -> Iterator[Recording]:
    for path in audio_files(folders["asterisk-moh-opsound-g722"] / "usr/share/asterisk/moh"):
        yield Recording(path=path, name=path.stem, kind="music", caption=f"music: {readable(path.stem)}", licence="CC-BY-SA-3.0")


SOURCES = [*(voice(language) for language in VOICES), Source("asterisk-moh", ("asterisk-moh-opsound-g722",), _read_music)]
