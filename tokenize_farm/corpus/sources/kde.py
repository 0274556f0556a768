"""KDE's games for children: words (KTuberling) and letters or syllables (KLettres) in many languages, about one speaker a language."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import unescape

from uniaudio.tokenize_farm.corpus.licence import Licences
from uniaudio.tokenize_farm.corpus.source import Recording, Source, audio_files

_SOUND = re.compile(r'<sound\s+name="([^"]*)"\s+file="([^"]*)"')


def read_sound_names(path: Path) -> dict[str, str]:
    """File (relative) -> what is spoken, from a `sounds.xml` or `.soundtheme`."""
    return {file: unescape(name) for name, file in _SOUND.findall(path.read_text(encoding="utf-8"))}


def _language(folder: str) -> str:
    """`pt_BR` -> `pt`, `sr@latin` -> `sr`."""
    return re.split(r"[_@]", folder)[0]


def _read_words(folders: Mapping[str, Path]) -> Iterator[Recording]:
    root = folders["ktuberling-data"] / "usr/share/ktuberling/sounds"
    licences = Licences(folders["ktuberling-data"] / "usr/share/doc/ktuberling-data/copyright")
    english = read_sound_names(root / "en.soundtheme")  # the other languages give the English name of a word in theirs
    for path in audio_files(root):
        name = path.relative_to(root).as_posix()
        word = english.get(name, "")
        language = _language(name.split("/")[0])
        yield Recording(
            path=path,
            name=name,
            kind="speech",
            text=word if word.isalpha() else None,
            language=language,
            speaker=f"ktuberling-{language}",
            licence=licences.of(f"sounds/{name}"),
        )


def _read_letters(folders: Mapping[str, Path]) -> Iterator[Recording]:
    root = folders["klettres-data"] / "usr/share/klettres"
    licences = Licences(folders["klettres-data"] / "usr/share/doc/klettres-data/copyright")
    texts: dict[str, str] = {}
    for path in sorted(root.glob("*/sounds.xml")):
        texts |= read_sound_names(path)
    for path in audio_files(root):
        name = path.relative_to(root).as_posix()
        language = _language(name.split("/")[0])
        yield Recording(
            path=path,
            name=name,
            kind="speech",
            text=texts.get(name),
            language=language,
            speaker=f"klettres-{name.split('/')[0].lower()}",
            licence=licences.of(f"data/{name}"),
        )


SOURCES = [
    Source("ktuberling", ("ktuberling-data",), _read_words, texts=("*.soundtheme",)),
    Source("klettres", ("klettres-data",), _read_letters, texts=("*/sounds.xml",)),
]
