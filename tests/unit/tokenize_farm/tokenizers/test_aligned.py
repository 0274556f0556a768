"""Phones with durations: TextGrid and CTM files, PocketSphinx, a CTC model from a folder; frames always add up to the clip's."""
# ruff: noqa: RUF001 - IPA letters are meant

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.schema import PHONE_MARKS, UNKNOWN_PHONE
from uniaudio.tokenize_farm.tokenizers import sing_phones
from uniaudio.tokenize_farm.tokenizers.aligned import AlignedPhoneTokenizer, SingPhoneTokenizer
from uniaudio.tokenize_farm.tokenizers.alignment import Sound, frames_of
from uniaudio.tokenize_farm.tokenizers.ctc import best_path
from uniaudio.tokenize_farm.tokenizers.espeak import speak
from uniaudio.tokenize_farm.tokenizers.phones import inventory, label_to_phone
from uniaudio.tokenize_farm.tokenizers.protocol import Clip

TIERS = {
    "words": [("", 0, 0.1), ("go", 0.1, 0.4), ("home", 0.4, 0.9), ("", 0.9, 1.0)],
    "phones": [("", 0, 0.1), ("G", 0.1, 0.2), ("OW1", 0.2, 0.4), ("HH", 0.4, 0.5), ("OW1", 0.5, 0.7), ("M", 0.7, 0.9), ("sp", 0.9, 1.0)],
}
EXPECTED = [("<sil>", 5), ("ɡ", 5), ("ˈoʊ", 10), ("<wb>", 0), ("h", 5), ("ˈoʊ", 10), ("m", 10), ("<sil>", 5)]


def textgrid(tiers: dict[str, list], *, long: bool = True) -> str:
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        "xmax = 1.0",
        "tiers? <exists>",
        f"size = {len(tiers)}",
    ]
    lines.append("item []:")
    for number, (name, rows) in enumerate(tiers.items(), start=1):
        head = ['class = "IntervalTier"', f'name = "{name}"', "xmin = 0", "xmax = 1.0", f"intervals: size = {len(rows)}"]
        lines += [f"    item [{number}]:", *("        " + line for line in head)]
        for i, (label, start, end) in enumerate(rows, start=1):
            lines += [
                f"        intervals [{i}]:",
                f"            xmin = {start}",
                f"            xmax = {end}",
                f'            text = "{label}"',
            ]
    if not long:  # Praat's short format: the values alone
        lines = [
            line.split("= ")[-1].replace("tiers? ", "").strip() for line in lines if not line.strip().startswith(("item", "intervals ["))
        ]
    return "\n".join(lines) + "\n"


def clip(tmp_path: Path, seconds: float = 1.0, **fields: object) -> Clip:
    row = {"id": "r", "audio_filepath": str(tmp_path / "r.wav"), "text": "go home", "language": "en"} | fields
    return Clip(ManifestRow.model_validate(row), np.zeros(int(seconds * 16_000), np.float32))


def named(rows: np.ndarray | None) -> list[tuple[str, int]]:
    assert rows is not None and rows.dtype == np.uint16
    names = list(inventory())
    return [(names[phone], frames) for phone, frames in rows.tolist()]


@pytest.mark.parametrize("form", ["long", "short", "utf-16"])
def test_textgrids_of_praat_and_of_forced_aligners(tmp_path: Path, form: str) -> None:
    (tmp_path / "r.TextGrid").write_text(textgrid(TIERS, long=form != "short"), encoding="utf-16" if form == "utf-16" else "utf-8")
    [rows] = AlignedPhoneTokenizer({"aligner": "none"}).encode([clip(tmp_path, alignment="r.TextGrid")])
    assert named(rows) == EXPECTED


def test_ctm_of_phones_and_of_words(tmp_path: Path) -> None:
    (tmp_path / "phones.ctm").write_text(
        "".join(f"r 1 {start} {end - start:.2f} {label or 'SIL'}\n" for label, start, end in TIERS["phones"])
    )
    lines = [";; made by hand", "other 1 0.0 0.5 no", "r 1 0.1 0.3 go 0.9", "r 1 0.4 0.5 home"]
    (tmp_path / "words.ctm").write_text("\n".join(lines))
    tokenizer = AlignedPhoneTokenizer({"aligner": "none"})
    phones, words = tokenizer.encode([clip(tmp_path, alignment="phones.ctm"), clip(tmp_path, alignment="words.ctm")])
    assert named(phones) == [pair for pair in EXPECTED if pair[0] != "<wb>"], "phones alone do not say where words part"
    assert named(words) == [("<sil>", 5), ("ɡ", 7), ("ˈoʊ", 8), ("<wb>", 0), ("h", 8), ("ˈoʊ", 9), ("m", 8), ("<sil>", 5)]


def test_times_count_from_the_start_of_the_recording(tmp_path: Path) -> None:
    (tmp_path / "r.TextGrid").write_text(textgrid(TIERS))
    [rows] = AlignedPhoneTokenizer({"aligner": "none"}).encode([clip(tmp_path, 0.5, alignment="r.TextGrid", offset=0.4)])
    assert named(rows) == [("h", 5), ("ˈoʊ", 10), ("m", 10)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"hello", "no TextGrid in Praat's text format"),
        (textgrid(TIERS)[:300].encode(), "damaged TextGrid"),
        (textgrid({"words": []}).replace("words", "notes").encode(), "holds no words and no phones of r"),
    ],
)
def test_a_bad_alignment_leaves_the_clip_without_the_view(tmp_path: Path, caplog, monkeypatch, content, message) -> None:
    if content is not None:
        (tmp_path / "r.TextGrid").write_bytes(content)
    monkeypatch.setattr(logging.getLogger("uniaudio"), "propagate", True)
    assert AlignedPhoneTokenizer({"aligner": "none"}).encode([clip(tmp_path, alignment="r.TextGrid")]) == [None]
    assert message in caplog.text
    (tmp_path / "r.ctm").write_text("a b c")
    AlignedPhoneTokenizer({"aligner": "none"}).encode([clip(tmp_path, alignment="r.ctm")])
    assert "is no CTM" in caplog.text


def test_frames_add_up_whatever_the_times() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        edges = np.sort(rng.uniform(-0.3, 2.5, 12))
        sounds = [Sound("a", edges[i], edges[i + 1], bool(i % 3 == 0)) for i in range(0, 12, 2)]
        frames = int(rng.integers(1, 120))
        rows = frames_of(sounds, frames)
        assert sum(count for _, count in rows) == frames and all(count >= 0 for _, count in rows)


def test_labels_in_arpabet_and_ipa() -> None:
    assert [label_to_phone(label) for label in ("AH0", "AH1", "OW2", "NG", "ʃ", "hello", "QX")] == ["ə", "ˈʌ", "ˌoʊ", "ŋ", "ʃ", None, None]


@pytest.fixture(scope="module")
def hello_pause_world() -> np.ndarray:
    first, second = speak("hello", "en"), speak("world", "en")
    return np.concatenate([np.zeros(4_800, np.float32), first, np.zeros(9_600, np.float32), second, np.zeros(3_200, np.float32)])


def test_sphinx_finds_words_and_pauses(tmp_path: Path, hello_pause_world: np.ndarray) -> None:
    tokenizer = AlignedPhoneTokenizer({})
    rows = [{"text": "Hello, world!"}, {"text": "Hello, world!", "language": "fr"}, {"text": "qx3"}, {"kind": "singing"}, {"text": None}]
    clips = [Clip(clip(tmp_path, **fields).row, hello_pause_world) for fields in rows]
    aligned, french, _, singing, silent = tokenizer.encode(clips)
    assert french is None and singing is None and silent is None
    phones = named(aligned)
    assert [name for name, _ in phones if name != "<sil>"] == ["h", "ə", "l", "ˈoʊ", "w", "ˈɝ", "l", "d"]
    assert sum(frames for _, frames in phones) == -(-len(hello_pause_world) // 320)
    pause = [name for name, _ in phones].index("<sil>", 1)
    assert phones[0][1] == pytest.approx(18, abs=8) and phones[pause][1] == pytest.approx(32, abs=8) and phones[pause - 1][0] == "ˈoʊ"
    again = tokenizer.encode([clips[2], clips[0]])[1]
    np.testing.assert_array_equal(again, aligned, err_msg="the clip before leaves no trace")
    fresh = AlignedPhoneTokenizer({}).encode(clips[:1])[0]
    np.testing.assert_array_equal(fresh, aligned)


def test_best_ctc_path_by_hand() -> None:
    frames = [0, 1, 1, 0, 1, 2, 0, 0]  # blank, a, a, blank, a, b
    scores = np.log(np.full((8, 3), 0.05) + 0.85 * np.eye(3)[frames])
    assert best_path(scores, [1, 1, 2], blank=0) == [(1, 3), (4, 5), (5, 6)]
    assert best_path(scores[:2], [1, 1, 2], blank=0) is None


def test_a_ctc_model_from_a_folder(tmp_path: Path, hello_pause_world: np.ndarray) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    letters = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **{letter: 5 + i for i, letter in enumerate("dehlorw")}}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_conv_pos_embeddings": 16}
    convolutions = {"conv_dim": (8,) * 7, "num_conv_pos_embedding_groups": 2}
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(letters), pad_token_id=0, **sizes, **convolutions))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="no letters beside the model"):
        AlignedPhoneTokenizer({"aligner": "ctc", "model": str(folder)})
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokenizer = AlignedPhoneTokenizer({"aligner": "ctc", "model": str(folder), "device": "cpu"})
    assert tokenizer.version.split("-ctc-")[1]
    clips = [Clip(clip(tmp_path, text=text).row, hello_pause_world) for text in ("hello world", "zebra")]
    rows, lacking = tokenizer.encode(clips)
    assert lacking is None, "the model knows no z"
    phones = named(rows)
    assert [name for name, _ in phones if name not in ("<sil>", "<wb>")] == ["h", "ə", "l", "ˈoʊ", "w", "ˈɝ", "l", "d"]
    assert sum(frames for _, frames in phones) == -(-len(hello_pause_world) // 320)


def test_sung_phones_fit_the_papers_vocabulary(tmp_path: Path) -> None:
    table = sing_phones.inventory()
    assert len(table) <= sing_phones.MAX_PHONES == 68 and table["<sil>"] == 0 and table["<unk>"] == UNKNOWN_PHONE
    lost = [name for name in list(inventory())[PHONE_MARKS:] if sing_phones.id_of(name) == UNKNOWN_PHONE]
    assert set(lost) <= set("˥˦˧˨˩ʲʰʷˤʙʕɮ"), "tones and modifiers alone have no sung phone"
    (tmp_path / "r.TextGrid").write_text(textgrid(TIERS))
    [rows] = SingPhoneTokenizer({"aligner": "none"}).encode([clip(tmp_path, alignment="r.TextGrid", kind="singing")])
    names = list(table)
    assert [(names[phone], frames) for phone, frames in rows.tolist()] == [
        ("<sil>", 5), ("ɡ", 5), ("oʊ", 10), ("h", 5), ("oʊ", 10), ("m", 10), ("<sil>", 5)
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{"aligner": "ctc"}, {"aligner": "sphinx", "model": "x"}])
def test_a_model_belongs_to_ctc(options: dict) -> None:
    with pytest.raises(UserError, match="tokenizer aligned_phones.*option model belongs to aligner ctc"):
        AlignedPhoneTokenizer(options)


def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(UserError, match="no such voice.*seen: en zz9"):
        speak("hello", "en", variant="zz9")
