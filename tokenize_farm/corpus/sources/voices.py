"""English by the voices of espeak-ng at drawn speeds and pitches, which the rows' keys describe: what instructed speech is learnt from."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from uniaudio.tokenize_farm.audio import save_wav
from uniaudio.tokenize_farm.corpus.source import MADE, Recording, Source
from uniaudio.tokenize_farm.corpus.sources import asterisk
from uniaudio.tokenize_farm.corpus.split import bucket
from uniaudio.tokenize_farm.manifest import make_id
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.tokenizers.espeak import speak

VARIANTS = {**{f"f{i}": "female" for i in range(1, 6)}, **{f"m{i}": "male" for i in range(1, 8)}}
SPEEDS = {"very slowly": 100, "slowly": 130, "at a normal pace": 170, "quickly": 220, "very quickly": 280}
PITCHES = {"very low": 10, "low": 30, "medium": 50, "high": 70, "very high": 90}
PERCENT = 70  # of the texts
_LONGEST = 160  # letters


def _read(folders: Mapping[str, Path]) -> Iterator[Recording]:
    package = asterisk.packages_of("en")[0]
    for key, text in asterisk.read_texts(folders[package] / f"usr/share/doc/{package}/core-sounds-en.txt.gz").items():
        if bucket(f"voices/{key}") >= PERCENT or not 15 <= len(text) <= _LONGEST:
            continue
        draw = Draw("voices", key)
        variant, speed, pitch = draw.choose(sorted(VARIANTS)), draw.choose(sorted(SPEEDS)), draw.choose(sorted(PITCHES))
        path = folders[MADE] / f"{make_id(key)}.wav"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_wav(path, speak(text, "en", variant=variant, words_per_minute=SPEEDS[speed], pitch=PITCHES[pitch]))
        yield Recording(
            path=path,
            name=f"voices/{key}",
            kind="speech",
            licence="made by espeak-ng",
            text=text,
            speaker=f"espeak-{variant}",
            language="en",
            made_of=("asterisk-en", f"en/{key}"),  # the same words
            more={"gender": VARIANTS[variant], "speed": speed, "pitch": pitch},
        )


SOURCES = [Source("voices-en", asterisk.packages_of("en")[:1], _read, texts=("*/core-sounds-*.txt.gz",))]
