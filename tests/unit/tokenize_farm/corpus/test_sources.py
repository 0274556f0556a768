"""Each source reads its package's own form: texts, speakers, captions and licences land in the right recording."""

import gzip
from pathlib import Path

import pytest
from corpus_builders import g722_bytes, put, wav_bytes

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.corpus.build import SOURCES
from uniaudio.tokenize_farm.corpus.licence import Licences
from uniaudio.tokenize_farm.corpus.pins import PINS
from uniaudio.tokenize_farm.corpus.source import Recording
from uniaudio.tokenize_farm.corpus.split import HELD_OUT_SPEAKERS

COPYRIGHT = b"""Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2020 A
License: GPL-2+
 Full text, with a colon: here.

Files: base/sound/ambience/*
 etc/samples/* it-*
Copyright: B
License: CC0
"""


def read(source: str, files: dict[str, dict[str, bytes]], tmp_path: Path) -> dict[str, Recording]:
    folders = {}
    for package in SOURCES[source].packages:
        contents = {f"usr/share/doc/{package}/copyright": COPYRIGHT, **files.get(package, {})}
        folders[package] = put(tmp_path / package, contents)
        assert all(SOURCES[source].wanted(name) for name in contents), "what is read must be unpacked"
    return {recording.name: recording for recording in SOURCES[source].read(folders)}


def test_licences_last_match_wins_and_unknown_is_an_error(tmp_path: Path) -> None:
    path = put(tmp_path, {"copyright": COPYRIGHT}) / "copyright"
    assert Licences(path).of("base/sound/ambience/x.ogg") == "CC0"
    assert Licences(path).of("etc/samples/x.flac") == "CC0"
    assert Licences(path).of("other") == "GPL-2+"
    path.write_text("no stanzas")
    with pytest.raises(UserError, match="gives no licence"):
        Licences(path).of("other")


def test_asterisk_reads_texts_and_skips_noises(tmp_path: Path) -> None:
    texts = "﻿; Core\n\nactivated: Attivato.\ndigits/1:  uno \nbeep: [tono]\nsilence/1: (silenzio)\nabsent: manca\n"
    voice = "usr/share/asterisk/sounds/it_IT_m_Carlo/"
    found = read(
        "asterisk-it",
        {
            "asterisk-core-sounds-it": {"usr/share/doc/asterisk-core-sounds-it/core-sounds-it.txt.gz": gzip.compress(texts.encode())},
            "asterisk-core-sounds-it-g722": {
                voice + f"{key}.g722": g722_bytes(0.1) for key in ("activated", "digits/1", "beep", "silence/1", "untold")
            },
        },
        tmp_path,
    )
    assert {name: recording.text for name, recording in found.items()} == {"it/activated": "Attivato.", "it/digits/1": "uno"}
    one = found["it/activated"]
    assert (one.speaker, one.language, one.licence, one.kind) == ("asterisk-carlo", "it", "CC0", "speech")


def test_fillets_reads_characters_and_escaped_texts(tmp_path: Path) -> None:
    lua = (
        '\ndialogId("let-m-divna", "font_small", "Strange, (isn\'t) it?")\ndialogStr("Co je \\"to\\"?")\n\n'
        'dialogId("let-v-vrak0", "font_big", "wreck")\ndialogStr("Vrak.")\ndialogId("x", "font_big", "...")\ndialogStr("...")\n'
    )
    game = "usr/share/games/fillets-ng/"
    sound = game + "sound/airplane/cs/"
    found = read(
        "fillets-cs",
        {
            "fillets-ng-data": {game + "script/airplane/dialogs_cs.lua": lua.encode()},
            "fillets-ng-data-cs": {sound + f"{name}.ogg": b"" for name in ("let-m-divna", "let-v-vrak0", "x", "unknown")},
        },
        tmp_path,
    )
    assert {name.split("/")[-1]: (item.speaker, item.text) for name, item in found.items()} == {
        "let-m-divna": ("fillets-cs-small", 'Co je "to"?'),
        "let-v-vrak0": ("fillets-cs-big", "Vrak."),
        "x": ("fillets-cs-big", None),
    }


def test_kde_games_give_language_and_letter(tmp_path: Path) -> None:
    root = "usr/share/klettres/"
    xml = '<sound name="&amp;" file="pt_BR/alpha/e.ogg"/>\n<sound name="á"  file="pt_BR/alpha/a.ogg" />'.encode()
    files = {root + "pt_BR/sounds.xml": xml, root + "pt_BR/alpha/a.ogg": b"", root + "pt_BR/alpha/e.ogg": b""}
    found = read("klettres", {"klettres-data": files}, tmp_path)
    assert found["pt_BR/alpha/a.ogg"].text == "á" and found["pt_BR/alpha/e.ogg"].text == "&"
    assert (found["pt_BR/alpha/a.ogg"].language, found["pt_BR/alpha/a.ogg"].speaker) == ("pt", "klettres-pt_br")
    root = "usr/share/ktuberling/sounds/"
    theme = b'<sound name="hat" file="en/hat.ogg" />\n<sound name="moon_x" file="en/moon.ogg" />'
    files = {root + "en.soundtheme": theme, **{root + name: b"" for name in ("en/hat.ogg", "en/moon.ogg", "sr@latin/hat.wav")}}
    found = read("ktuberling", {"ktuberling-data": files}, tmp_path / "k")
    assert {name: (item.text, item.language) for name, item in found.items()} == {
        "en/hat.ogg": ("hat", "en"),
        "en/moon.ogg": (None, "en"),
        "sr@latin/hat.wav": (None, "sr"),
    }


def test_hedgewars_tells_voices_sounds_and_music_apart(tmp_path: Path) -> None:
    data = "usr/share/games/hedgewars/Data/"
    names = [
        "Sounds/voices/Default_es/Ouch.ogg",
        "Sounds/voices/Mobster/Ouch.ogg",
        "Sounds/mine_impact2.ogg",
        "Sounds/1C.ogg",
        "Music/Rock.ogg",
    ]
    found = read("hedgewars", {"hedgewars-data": {data + name: b"" for name in names}}, tmp_path)
    assert [(item.kind, item.language, item.speaker, item.caption) for item in found.values()] == [
        ("sound", None, None, None),
        ("sound", None, None, "mine impact"),
        ("speech", "es", "hedgewars-default_es", None),
        ("speech", "en", "hedgewars-mobster", None),
        ("music", None, None, "music of a game: rock"),
    ]


UFO = "ufoai-sound/usr/share/games/ufoai/base/0snd.pk3.d/sound"
SONIC = "sonic-pi-samples/usr/share/sonic-pi/samples"
WIDELANDS = "widelands-data/usr/share/games/widelands/data"
WESNOTH = "wesnoth-1.16-music/usr/share/games/wesnoth/1.16/data/core/music"


@pytest.mark.parametrize(
    ("source", "path", "kind", "caption", "licence"),
    [
        ("ufoai", f"{UFO}/ambience/water01.ogg", "sound", "ambience of water", "CC0"),
        ("ufoai", f"{UFO}/soldiers/malehurt06.ogg", "sound", "man hurt", "GPL-2+"),
        ("ufoai", f"{UFO}/civilians/civfemdeath01a.ogg", "sound", "woman dying", "GPL-2+"),
        ("sonic-pi", f"{SONIC}/guit_harmonics.flac", "music", "guitar harmonics", "CC0"),
        ("sonic-pi", f"{SONIC}/bd_808.flac", "sound", "bass drum", "CC0"),
        ("sonic-pi", f"{SONIC}/misc_crow.flac", "sound", "crow", "CC0"),
        ("sound-icons", "sound-icons/usr/share/sounds/sound-icons/glass-water-1.wav", "sound", "glass water", "GPL-2+"),
        ("bucklespring", "bucklespring-data/usr/share/buckle/wav/1c-1.wav", "sound", "a key of a mechanical keyboard is pressed", "GPL-2+"),
        ("widelands", f"{WIDELANDS}/sound/animals/wolf_00.ogg", "sound", "animal: wolf", "GPL-2+"),
        ("widelands", f"{WIDELANDS}/sound/message_01.ogg", "sound", None, "GPL-2+"),
        ("widelands", f"{WIDELANDS}/music/intro.ogg", "music", "music of a strategy game", "GPL-2+"),
        ("wesnoth", f"{WESNOTH}/sad.ogg", "music", "orchestral music of a fantasy game: sad", "GPL-2+"),
        ("asterisk-moh", "asterisk-moh-opsound-g722/usr/share/asterisk/moh/a-system.g722", "music", "music: a system", "CC-BY-SA-3.0"),
        ("fillets", "fillets-ng-data/usr/share/games/fillets-ng/sound/share/sp-bubles_00.ogg", "sound", "bubbles", "GPL-2"),
    ],
)
def test_names_become_captions(tmp_path: Path, source: str, path: str, kind: str, caption: str | None, licence: str) -> None:
    package, _, name = path.partition("/")
    (item,) = read(source, {package: {name: wav_bytes(0.1)}}, tmp_path).values()
    assert (item.kind, item.caption, item.licence, item.text) == (kind, caption, licence, None)


def test_sphinx_reads_transcriptions(tmp_path: Path) -> None:
    data = "usr/share/pocketsphinx/test/data/"
    files = {
        data + "librivox/transcription": b"<s> he was   young </s> (austen-0880)\n",
        data + "cards/cards.transcription": b"<s> five five  </s> (004)\n",
    }
    found = read("sphinx", {"pocketsphinx-testdata": files}, tmp_path)
    assert {name: (item.text, item.speaker) for name, item in found.items()} == {
        "cards/004": ("five five", "cmu-cards"),
        "librivox/austen-0880": ("he was young", "librivox-austen"),
    }
    assert {item.speaker for item in found.values()} <= HELD_OUT_SPEAKERS


def test_every_package_of_the_registry_is_pinned() -> None:
    assert {package for source in SOURCES.values() for package in source.packages} <= set(PINS)
