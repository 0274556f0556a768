"""Sounds whose file names say what they are: UFO: Alien Invasion, Sonic Pi, sound icons, a keyboard."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from uniaudio.tokenize_farm.corpus.captions import describe, readable
from uniaudio.tokenize_farm.corpus.licence import Licences
from uniaudio.tokenize_farm.corpus.source import Recording, Source, audio_files

# first word of a Sonic Pi sample -> what it stands for, and whether it is music
_SONIC_PI = {
    "ambi": ("ambient", "sound"),
    "bass": ("bass", "music"),
    "bd": ("bass drum", "sound"),
    "drum": ("drum", "sound"),
    "elec": ("electronic", "sound"),
    "glitch": ("glitch", "sound"),
    "guit": ("guitar", "music"),
    "loop": ("loop", "music"),
    "mehackit": ("electronic", "sound"),
    "misc": ("", "sound"),
    "perc": ("percussion", "sound"),
    "sn": ("snare drum", "sound"),
    "tabla": ("tabla drum", "sound"),
    "vinyl": ("vinyl record", "sound"),
}


def _read_ufo(folders: Mapping[str, Path]) -> Iterator[Recording]:
    folder = folders["ufoai-sound"]
    root = folder / "usr/share/games/ufoai/base/0snd.pk3.d"
    licences = Licences(folder / "usr/share/doc/ufoai-sound/copyright")
    for path in audio_files(root):
        name = path.relative_to(root).with_suffix("").as_posix()
        licence = licences.of(f"base/{path.relative_to(root).as_posix()}")
        yield Recording(path=path, name=name, kind="sound", caption=describe(path.stem, name.split("/")[1:-1]), licence=licence)


def _read_sonic_pi(folders: Mapping[str, Path]) -> Iterator[Recording]:
    folder = folders["sonic-pi-samples"]
    licences = Licences(folder / "usr/share/doc/sonic-pi-samples/copyright")
    for path in audio_files(folder / "usr/share/sonic-pi/samples"):
        first, _, rest = path.stem.partition("_")
        meaning, kind = _SONIC_PI[first]
        caption = readable(rest.replace("3d", "three dimensional"))
        if not caption.startswith(meaning):
            caption = f"{meaning} {caption}"
        yield Recording(path=path, name=path.stem, kind=kind, caption=caption.strip(), licence=licences.of(f"etc/samples/{path.name}"))


def _read_icons(folders: Mapping[str, Path]) -> Iterator[Recording]:
    folder = folders["sound-icons"]
    licences = Licences(folder / "usr/share/doc/sound-icons/copyright")
    for path in audio_files(folder / "usr/share/sounds/sound-icons"):
        yield Recording(path=path, name=path.stem, kind="sound", caption=readable(path.stem), licence=licences.of(path.name))


def _read_keyboard(folders: Mapping[str, Path]) -> Iterator[Recording]:
    folder = folders["bucklespring-data"]
    licences = Licences(folder / "usr/share/doc/bucklespring-data/copyright")
    for path in audio_files(folder / "usr/share/buckle/wav"):
        action = "pressed" if path.stem.endswith("-1") else "released"
        caption = f"a key of a mechanical keyboard is {action}"
        yield Recording(path=path, name=path.stem, kind="sound", caption=caption, licence=licences.of(f"wav/{path.name}"))


SOURCES = [
    Source("ufoai", ("ufoai-sound",), _read_ufo, texts=("*.pk3",)),
    Source("sonic-pi", ("sonic-pi-samples",), _read_sonic_pi),
    Source("sound-icons", ("sound-icons",), _read_icons),
    Source("bucklespring", ("bucklespring-data",), _read_keyboard),
]
