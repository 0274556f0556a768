"""The demo corpus: minutes of clean speech in two languages by two speakers, sounds with names, and music. About 48 MB of packages."""

from pathlib import Path

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.corpus.build import Corpus, build_corpus, find_sources
from uniaudio.tokenize_farm.corpus.folder import folder_corpus
from uniaudio.tokenize_farm.corpus.select import choose

# source -> its share of the minutes
SHARES = {"asterisk-en": 0.36, "asterisk-it": 0.27, "ufoai": 0.20, "sound-icons": 0.02, "asterisk-moh": 0.15}
MINUTES = 22.0
HELD_OUT_PERCENT = 10
PART_SECONDS = 10.0


def demo_corpus(cache: Path, minutes: float = MINUTES, *, audio_dir: Path | None = None) -> Corpus:
    """About `minutes` of recordings, the same ones every time: from Debian packages, or from the user's own folder.

    Raises UserError where packages can be had neither from the cache nor with apt-get, or where the folder holds no audio.
    """
    if not minutes > 0:
        raise UserError("--minutes must be positive", seen=minutes, remedy="give the minutes of audio to choose, 22 say")
    if audio_dir is not None:
        whole = folder_corpus(audio_dir, percent=HELD_OUT_PERCENT, max_seconds=PART_SECONDS)
        shares = dict.fromkeys(whole.by_source, 1.0)
    else:
        whole = build_corpus(find_sources(SHARES), cache, percent=HELD_OUT_PERCENT, max_seconds=PART_SECONDS)
        shares = SHARES
    return Corpus({name: choose(rows, minutes * shares[name]) for name, rows in whole.by_source.items()}, whole.dropped)
