"""Music and noises of two strategy games: The Battle for Wesnoth and Widelands."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from uniaudio.tokenize_farm.corpus.captions import describe, readable
from uniaudio.tokenize_farm.corpus.licence import Licences
from uniaudio.tokenize_farm.corpus.source import Recording, Source, audio_files

_UNNAMED = ("message", "lobby", "under_attack", "site_occupied")


def _read_wesnoth(folders: Mapping[str, Path]) -> Iterator[Recording]:
    for path in audio_files(folders["wesnoth-1.16-music"] / "usr/share/games/wesnoth/1.16/data/core/music"):
        caption = f"orchestral music of a fantasy game: {readable(path.stem)}"
        yield Recording(path=path, name=path.stem, kind="music", caption=caption, licence="GPL-2+")


def _read_widelands(folders: Mapping[str, Path]) -> Iterator[Recording]:
    folder = folders["widelands-data"]
    licences = Licences(folder / "usr/share/doc/widelands-data/copyright")
    root = folder / "usr/share/games/widelands/data"
    for path in audio_files(root):
        name = path.relative_to(root).with_suffix("").as_posix()
        kind = "music" if name.startswith("music/") else "sound"
        if kind == "music":
            caption = "music of a strategy game"
        else:
            caption = "" if path.stem.startswith(_UNNAMED) else describe(path.stem, [path.parent.name])
        licence = licences.of(f"data/{path.relative_to(root).as_posix()}")
        yield Recording(path=path, name=name, kind=kind, caption=caption or None, licence=licence)


SOURCES = [
    Source("wesnoth", ("wesnoth-1.16-music",), _read_wesnoth),
    Source("widelands", ("widelands-data",), _read_widelands),
]
