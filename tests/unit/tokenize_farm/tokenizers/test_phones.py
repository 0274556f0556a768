"""Phones: one inventory for every language, CMUdict first in English, espeak-ng elsewhere."""
# ruff: noqa: RUF001 - IPA letters are meant

import pytest

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers import phones
from uniaudio.tokenize_farm.tokenizers.phones import MAX_PHONES, UNKNOWN, PhoneTokenizer, inventory, text_to_phones
from uniaudio.tokenize_farm.tokenizers.protocol import Clip

SENTENCES = {
    "en": "The quick brown fox, well-known since 1984, didn't jump over Kubernetes!",
    "es": "La extensión está ocupada. ¿Qué pasa, señor?",
    "fr": "Un bon vin blanc; l'utilisateur est très occupé.",
    "cs": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "nl": "De gebruiker is bezet, ik ga schuin.",
    "it": "L'agente è già collegato, inserisca un altro numero.",
    "de": "Ich möchte Bücher über Pferde.",
    "pt-BR": "São coração não.",
    "ru": "Здравствуйте, добрый день.",
    "cmn": "你好，世界。",
}


def test_inventory_fits_the_papers_vocabulary() -> None:
    table = inventory()
    assert len(table) <= MAX_PHONES == 306
    assert table["<sil>"] == 0 and table["<unk>"] == 1 and table["<wb>"] == 2


def test_every_symbol_of_the_dictionary_has_a_phone() -> None:
    symbols = {symbol for entry in phones._dictionary().values() for symbol in entry.split()}
    assert len(symbols) > 60 and len(phones._dictionary()) > 120_000
    assert all(phones._from_arpabet(symbol) in inventory() for symbol in symbols)


@pytest.mark.parametrize("language", SENTENCES)
def test_real_sentences_need_no_unknown_phone(language: str) -> None:
    spoken = text_to_phones(SENTENCES[language], language)
    assert len(spoken) > 8 and set(spoken) <= set(inventory())
    assert UNKNOWN not in spoken


def test_english_follows_the_dictionary_with_stress() -> None:
    assert text_to_phones("Hello, world!", "en") == ["h", "ə", "l", "ˈoʊ", ",", "w", "ˈɝ", "l", "d", "!"]
    assert text_to_phones("the user's", "en-GB") == ["ð", "ə", "<wb>", "j", "ˈuː", "z", "ɚ", "z"]


def test_words_outside_the_dictionary_use_the_same_phones() -> None:
    spoken = text_to_phones("Zorblaxify 12", "en")
    english = {phones._from_arpabet(symbol) for entry in phones._dictionary().values() for symbol in entry.split()}
    assert set(spoken) - {"<wb>"} <= english


def test_languages_give_their_own_sounds() -> None:
    assert "ɲ" in text_to_phones("señor", "es") and "r̝" in text_to_phones("řeka", "cs")
    assert "ç" in text_to_phones("ich", "de") and "ˈɔ̃" in text_to_phones("bon", "fr")
    assert text_to_phones("de", "nl") != text_to_phones("de", "es")


@pytest.mark.parametrize("text", ["", "   ", "...", "?!", "—"])
def test_nothing_to_say_gives_no_phones(text: str) -> None:
    assert text_to_phones(text, "en") == [] == text_to_phones(text, "es")


def test_clips_without_words_have_no_view() -> None:
    tokenizer = PhoneTokenizer({})
    rows = [
        ManifestRow(id="1", audio_filepath="x", text="hi there", language="en"),
        ManifestRow(id="2", audio_filepath="x"),
        ManifestRow(id="3", audio_filepath="x", kind="sound", text="a dog barks"),
        ManifestRow(id="4", audio_filepath="x", text="abc", language="tlh-unknown"),
        ManifestRow(id="5", audio_filepath="x", text="..."),
        ManifestRow(id="6", audio_filepath="x", text="la", kind="singing"),
    ]
    views = tokenizer.encode([Clip(row, None) for row in rows])
    assert [view is not None for view in views] == [True, False, False, False, False, True]
    assert views[0].dtype == "uint16" and views[0].shape == (len(text_to_phones("hi there", "en")), 2) and not views[0][:, 1].any()
    assert "".join(list(inventory())[i] for i in views[0][:, 0]) == "".join(text_to_phones("hi there", "en"))


def test_asking_for_impossible_words_is_a_user_error() -> None:
    tokenizer = PhoneTokenizer({})
    with pytest.raises(UserError, match="no phones for this text"):
        tokenizer.encode_text("...")
    with pytest.raises(UserError, match="language xx"):
        tokenizer.encode_text("abc", "xx")


def test_a_damaged_inventory_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "phones.txt").write_text("a\nb\na\n")
    monkeypatch.setattr(phones, "INVENTORY", tmp_path / "phones.txt")
    with pytest.raises(UserError, match="a phone twice"):
        inventory.__wrapped__()
