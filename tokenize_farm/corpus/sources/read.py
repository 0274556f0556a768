"""English sentences (WordNet's examples) read by four voices that were made, not recorded: hours of text and sound that belong together.

Recorded English with its text is 23 minutes here; nobody learns to speak from that. Every sentence is read once, by one voice.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from uniaudio.tokenize_farm.audio import save_wav
from uniaudio.tokenize_farm.corpus.source import MADE, Recording, Source
from uniaudio.tokenize_farm.corpus.synthesis import FLITE_LIBRARIES, Voice, flite_voice, hibari_voice
from uniaudio.tokenize_farm.simulate.draw import Draw

SHARES = {"hibari-heart": 50, "flite-slt": 20, "flite-rms": 20, "flite-awb": 10}  # in percent
GENDERS = {"hibari-heart": "female", "flite-slt": "female", "flite-rms": "male", "flite-awb": "male"}
_QUOTED = re.compile(r'"([^"]+)"')
_PLAIN = re.compile(r"[A-Za-z][A-Za-z' ,;?!-]*[A-Za-z?!]")  # no digits, abbreviations, quotations
_LETTERS = (20, 120)
_WORDS = 4
_DRAWN = [name for name, share in SHARES.items() for _ in range(share)]


def sentences(package: Path) -> list[str]:
    """WordNet's examples that can be read aloud as they stand, sorted, each once."""
    found: set[str] = set()
    for part in ("noun", "verb", "adj", "adv"):
        for example in _QUOTED.findall((package / f"usr/share/wordnet/data.{part}").read_text(encoding="ascii", errors="replace")):
            text = " ".join(example.split())
            if _PLAIN.fullmatch(text) and _LETTERS[0] <= len(text) <= _LETTERS[1] and len(text.split()) >= _WORDS:
                found.add(text)
    return sorted(found)


def _read(folders: Mapping[str, Path]) -> Iterator[Recording]:
    texts: dict[str, list[str]] = defaultdict(list)
    for text in sentences(folders["wordnet-base"]):
        texts[Draw("read", text).choose(_DRAWN)].append(text)
    with ThreadPoolExecutor(len(texts)) as pool:  # a voice a thread: its library is not to be entered twice
        for recordings in pool.map(lambda name: _read_by(name, texts[name], folders), sorted(texts)):
            yield from recordings


def _read_by(name: str, texts: list[str], folders: Mapping[str, Path]) -> list[Recording]:
    voice: Voice | None = None
    recordings = []
    for text in texts:
        key = f"{name}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        path = folders[MADE] / f"{key}.wav"
        if not path.is_file():
            if voice is None:
                voice = hibari_voice() if name.startswith("hibari") else flite_voice(folders["libflite1"], name.removeprefix("flite-"))
            path.parent.mkdir(parents=True, exist_ok=True)
            save_wav(path, voice(text))
        recordings.append(
            Recording(
                path=path,
                name=f"read/{key}",
                kind="speech",
                licence="made by flite" if name.startswith("flite") else "made by hibari-tts",
                text=text,
                speaker=name,
                language="en",
                more={"gender": GENDERS[name]},
            )
        )
    return recordings


SOURCES = [Source("read-en", ("libflite1", "wordnet-base"), _read, texts=(FLITE_LIBRARIES, "usr/share/wordnet/data.*"))]
