"""Hedgewars: short acted cries of 15 voice packs (no reliable texts), its noises and its music."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from uniaudio.tokenize_farm.corpus.captions import describe, readable
from uniaudio.tokenize_farm.corpus.licence import Licences
from uniaudio.tokenize_farm.corpus.source import Recording, Source, audio_files

_DATA = "usr/share/games/hedgewars/Data"
_LANGUAGES = ("es", "pl", "ru", "uk")
_MEANINGLESS = (
    "custom",
    "hogchant",
    "hell",
    "extratime",
    "suddendeath",
    "denied",
    "ride",
    "skip",
    "lowgravity",
    "invulnerable",
    "throwpowerup",
    "TARDIS",
    "countdown",
)


def _read(folders: Mapping[str, Path]) -> Iterator[Recording]:
    folder = folders["hedgewars-data"]
    licences = Licences(folder / "usr/share/doc/hedgewars-data/copyright")
    root = folder / _DATA
    for path in audio_files(root / "Sounds"):
        name = path.relative_to(root).with_suffix("").as_posix()
        licence = licences.of(f"share/hedgewars/Data/{path.relative_to(root).as_posix()}")
        if "/voices/" in name:
            pack = name.split("/")[2]
            suffix = pack.rsplit("_", 1)[-1]
            language = suffix if suffix in _LANGUAGES else "en"
            speaker = f"hedgewars-{pack.lower()}"
            yield Recording(path=path, name=name, kind="speech", language=language, speaker=speaker, licence=licence)
        else:
            meaningless = len(readable(path.stem)) < 3 or path.stem.startswith(_MEANINGLESS)
            caption = None if meaningless else describe(path.stem)
            yield Recording(path=path, name=name, kind="sound", caption=caption, licence=licence)
    for path in audio_files(root / "Music"):
        caption = f"music of a game: {readable(path.stem)}"
        licence = licences.of("share/hedgewars/Data/Music/" + path.name)
        yield Recording(path=path, name=f"Music/{path.stem}", kind="music", caption=caption, licence=licence)


SOURCES = [Source("hedgewars", ("hedgewars-data",), _read)]
