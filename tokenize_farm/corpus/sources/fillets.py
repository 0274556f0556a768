"""Fish Fillets: acted dialogue of about 20 characters in Czech and Dutch with texts, its noises and its music."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from uniaudio.tokenize_farm.corpus.captions import describe
from uniaudio.tokenize_farm.corpus.source import Recording, Source, audio_files

LICENCE = "GPL-2"
_GAME = "usr/share/games/fillets-ng"
_DIALOG = re.compile(r'dialogId\("([\w-]+)",\s*"font_(\w+)",.*?\)\s*dialogStr\(\s*"((?:[^"\\]|\\.)*)"\s*\)', re.DOTALL)


def read_dialogs(path: Path) -> dict[str, tuple[str, str]]:
    """Name of a recording -> (character, text), from a level's `dialogs_LANGUAGE.lua`."""
    found = _DIALOG.findall(path.read_text(encoding="utf-8"))
    return {name: (character, " ".join(re.sub(r"\\(.)", r"\1", text).split())) for name, character, text in found}


def _voices(language: str) -> Source:
    package = f"fillets-ng-data-{language}"

    def read(folders: Mapping[str, Path]) -> Iterator[Recording]:
        scripts = folders["fillets-ng-data"] / _GAME / "script"
        for level in sorted((folders[package] / _GAME / "sound").iterdir()):
            lua = scripts / level.name / f"dialogs_{language}.lua"
            dialogs = read_dialogs(lua) if lua.is_file() else {}
            for path in audio_files(level / language):
                if path.stem not in dialogs:
                    continue  # songs, mumbling, other files without a known character
                character, text = dialogs[path.stem]
                yield Recording(
                    path=path,
                    name=f"{language}/{level.name}/{path.stem}",
                    kind="speech",
                    text=text if any(letter.isalpha() for letter in text) else None,
                    language=language,
                    speaker=f"fillets-{language}-{character}",
                    licence=LICENCE,
                )

    return Source(f"fillets-{language}", ("fillets-ng-data", package), read, texts=(f"*/dialogs_{language}.lua",))


def _read_sounds(folders: Mapping[str, Path]) -> Iterator[Recording]:
    game = folders["fillets-ng-data"] / _GAME
    for path in audio_files(game / "sound/share"):
        caption = describe(path.stem.removeprefix("sp-"))
        yield Recording(path=path, name=f"sound/{path.stem}", kind="sound", caption=caption, licence=LICENCE)
    for path in audio_files(game / "music"):
        yield Recording(path=path, name=f"music/{path.stem}", kind="music", caption="music of an underwater puzzle game", licence=LICENCE)


SOURCES = [_voices("cs"), _voices("nl"), Source("fillets", ("fillets-ng-data",), _read_sounds)]
