"""The inventory of sung phones, at most 68 as in the paper: no stress, no length, rare sounds taken for their nearest neighbours."""
# ruff: noqa: RUF001 - IPA letters are meant

import unicodedata
from functools import cache
from pathlib import Path

INVENTORY = Path(__file__).parent / "data" / "sing_phones.txt"
MAX_PHONES = 68
UNKNOWN = 1
_NEIGHBOURS = {
    **{"ɐ": "ə", "ɘ": "ə", "ɜ": "ɝ", "ɞ": "œ", "ɤ": "ʌ", "ᵻ": "ɪ", "ɶ": "œ", "ɵ": "ø", "ʉ": "u", "ɯ": "ɨ", "ʏ": "y", "ɒ": "ɔ", "ɚ": "ɝ"},
    **{"ʈ": "t", "ɖ": "d", "c": "tʃ", "ɟ": "dʒ", "q": "k", "ɢ": "ɡ", "ɱ": "m", "ɳ": "n", "ɴ": "ŋ", "ʀ": "ʁ", "ɽ": "ɾ", "ɸ": "f", "β": "v"},
    **{"ʂ": "ʃ", "ʐ": "ʒ", "ʝ": "j", "ɣ": "ɡ", "χ": "x", "ħ": "h", "ɦ": "h", "ʋ": "v", "ɻ": "ɹ", "ɰ": "w", "ɭ": "l", "ʟ": "l", "ɫ": "l"},
    **{"ʍ": "w", "ɕ": "ʃ", "ʑ": "ʒ", "r̝": "ʒ", "tɕ": "tʃ", "dʑ": "dʒ", "tʂ": "tʃ", "dʐ": "dʒ", "pf": "f", "ɐ̃": "ɑ̃", "ã": "ɑ̃"},
    **{"õ": "ɔ̃", "œ̃": "ɛ̃", "ĩ": "i", "ũ": "u", "ẽ": "ɛ̃", "l̩": "l", "r̩": "r", "n̩": "n", "m̩": "m"},
}


@cache
def inventory() -> dict[str, int]:
    """Phone -> id: its line, counted from 0."""
    return {name: number for number, name in enumerate(INVENTORY.read_text(encoding="utf-8").splitlines())}


@cache
def id_of(phone: str) -> int:
    """Id of a phone of the large inventory (`phones.inventory`); pauses and marks are silence, what cannot be sung is unknown."""
    table = inventory()
    name = unicodedata.normalize("NFD", phone).lstrip("ˈˌ").removesuffix("ː").replace("c\u0327", "\u00e7")
    name = _NEIGHBOURS_NFD.get(name, name)
    return table.get(name, UNKNOWN)


_NEIGHBOURS_NFD = {unicodedata.normalize("NFD", rare): unicodedata.normalize("NFD", near) for rare, near in _NEIGHBOURS.items()}
