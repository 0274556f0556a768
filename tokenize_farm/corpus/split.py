"""Which recordings are never trained on. A pure function of source, speaker and recording: the same on every machine, for ever.

1. Whole speakers (HELD_OUT_SPEAKERS), some of them in languages no other row speaks: how well do codec and model do on a new voice?
2. About 5 % of the recordings of everything else, by hash: how well do they do on new recordings of a known source? Sounds that differ
   in a number only (`thunder1`, `thunder2`) go together, so that no near-copy of a held-out sound is trained on; so do all parts of one
   recording.
"""

import hashlib
import re
from dataclasses import dataclass

HELD_OUT_PERCENT = 5
HELD_OUT_SPEAKERS = frozenset(
    {
        "asterisk-june",  # French, 16 kHz, professional: the one to measure quality on
        "librivox-austen",  # English audiobook
        "cmu-cards",  # English, read playing cards
        "fillets-cs-statue",
        "fillets-cs-parrot",
        "fillets-cs-linuxer2",
        "hedgewars-british",
        "hedgewars-surfer",
        "klettres-hu",  # Hungarian, Hebrew, Finnish, Lithuanian: no other rows in these languages
        "klettres-he",
        "klettres-lt",
        "ktuberling-lt",
        "ktuberling-fi",
    }
)


@dataclass(frozen=True)
class Split:
    """`name` is train or valid; `held_out` says why a row is valid: speaker or recording."""

    name: str
    held_out: str | None = None


def split_of(source: str, recording: str, *, kind: str, speaker: str | None = None, percent: int = HELD_OUT_PERCENT) -> Split:
    """The split of a recording. A higher `percent` only adds to what is held out."""
    if speaker in HELD_OUT_SPEAKERS:
        return Split("valid", "speaker")
    family = re.sub(r"[-_ ]?\d+$", "", recording) if kind == "sound" else recording
    if bucket(f"{source}/{family}") < percent:
        return Split("valid", "recording")
    return Split("train")


def bucket(name: str) -> int:
    """0 to 99, by hash of the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
