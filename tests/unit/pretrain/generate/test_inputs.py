"""Every task takes its natural inputs, and each bad input is one clear line."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_tokenizers import TOKENIZERS

from uniaudio.configs.tasks import load_task
from uniaudio.errors import UserError
from uniaudio.pretrain.data.sequence import MASKED, build_prompt_sequence
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.generate.inputs import Inputs, input_names, make_tokenizers, read_views

VOCABULARY = load_vocabulary("paper")


@pytest.fixture(scope="module")
def wav(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wavs") / "voice.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(32_000) / 20), 16_000)
    return path


def views(task: str, inputs: Inputs, *, positions: int = 3000) -> dict[str, np.ndarray]:
    return read_views(load_task(task), inputs, TOKENIZERS, prompt_seconds=1.0, positions=positions)


TASKS = {
    "tts": {"text": "good day", "prompt": True},
    "vc": {"source": True, "prompt": True},
    "se": {"source": True},
    "sd": {"source": True},
    "tse": {"source": True, "prompt": True},
    "svs": {"text": "la la", "source": True, "prompt": True},
    "sound": {"text": "rain on a roof"},
    "music": {"text": "a slow waltz"},
    "a_edit": {"instruction": "add a bell", "source": True},
    "i_tts": {"text": "good day", "instruction": "slowly"},
    "s_edit": {"text": "the big fox ran", "source": True, "replace": "big=small"},
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_its_natural_inputs(task, wav):
    given = {name: wav if value is True else value for name, value in TASKS[task].items()}
    made = views(task, Inputs(**given))
    assert set(made) == {segment.key for segment in load_task(task).conditions}
    assert set(given) <= set(input_names(load_task(task))) <= set(given) | {"phones", "language", "alignment", "midi"}
    document = build_prompt_sequence(load_task(task), made, VOCABULARY, 3)
    assert document.codes_LQ[-1, 0] == VOCABULARY.special("<audio_start>")
    if "prompt" in made:
        assert len(made["prompt"]) == 50, "one second of the prompt is used"
    for name in given:
        with pytest.raises(UserError, match=f"--{name} "):
            views(task, Inputs(**{key: value for key, value in given.items() if key != name}))


def test_edited_words_are_hidden_and_spelled_anew_at_the_recordings_pace(wav):
    before = TOKENIZERS["phone.aligned"]
    made = views("s_edit", Inputs(text="the big fox ran", source=wav, replace="big=small"))
    phones, codes = made["phone.aligned"], made["audio.masked"]
    assert phones[:, 0].tolist() == [20 + ord(letter) - ord("a") for letter in "thesmallfoxran"]
    hidden = (codes == MASKED).all(axis=1)
    lasts = phones[:, 1].astype(int)
    assert hidden.sum() == lasts[3:8].sum() == round(5 * 100 / 12)
    assert np.flatnonzero(hidden)[0] == lasts[:3].sum()
    assert len(codes) == lasts.sum()
    assert before is TOKENIZERS["phone.aligned"]


def test_words_replaced_by_themselves_keep_their_times(wav):
    made = views("s_edit", Inputs(text="the big fox ran", source=wav, replace="big fox=big fox"))
    assert made["phone.aligned"][:, 1].sum() == 100
    assert (made["audio.masked"] == MASKED).all(axis=1).sum() == made["phone.aligned"][3:9, 1].sum()


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("tts", {"text": "   "}, r"task tts needs words \| seen: ' ' \| remedy: --text"),
        ("tts", {"text": "", "prompt": "WAV"}, "task tts needs words"),
        ("tts", {"phones": "h ɛ QQ l oʊ"}, r"unknown phonemes \| seen: QQ \| allowed: "),
        ("tts", {"text": "hello", "language": "xx"}, r"no phonemes in this language \| seen: xx"),
        ("tts", {"text": "☃ ☃"}, "sounds that have no phoneme"),
        ("se", {"source": "nowhere.wav"}, r"--source: cannot use the recording \(missing\)"),
        ("se", {"source": "CORRUPT"}, r"--source: cannot use the recording \(not_audio\)"),
        ("se", {"source": "WAV", "positions": 90}, r"--source: .* is too long \| seen: 2.0 s \| allowed: 1.8 s"),
        ("vc", {"source": "WAV", "prompt": "HOUR"}, r"--prompt: .* is too long \| seen: 3600.0 s \| allowed: 60 s \| remedy: cut it"),
        ("s_edit", {"text": "the fox", "source": "WAV"}, r"needs words to replace .* remedy: --replace"),
        ("s_edit", {"text": "the fox", "source": "WAV", "replace": "dog=cat"}, r"must be in the recording once \| seen: 'dog' 0 times"),
        ("s_edit", {"text": "ha ha", "source": "WAV", "replace": "ha=ho"}, "seen: 'ha' 2 times"),
        ("s_edit", {"text": "x" * 200, "source": "WAV", "replace": "x=y"}, "cannot be aligned with the recording"),
        ("svs", {"text": "x" * 200, "source": "WAV"}, r"nothing to condition on in view phone.singing .* remedy: give --alignment"),
    ],
)
def test_bad_input_is_one_clear_line(task, given, message, wav, tmp_path):
    corrupt, hour = tmp_path / "corrupt.wav", tmp_path / "hour.wav"
    corrupt.write_bytes(b"RIFF\x10\x00\x00\x00 this is no sound")
    if given.get("prompt") == "HOUR":
        with soundfile.SoundFile(hour, "w", 16_000, 1, subtype="PCM_U8") as file:
            for _ in range(60):
                file.write(np.zeros(60 * 16_000, np.float32))
    files = {"WAV": wav, "CORRUPT": corrupt, "HOUR": hour, "nowhere.wav": Path("nowhere.wav")}
    given = {name: files.get(value, value) for name, value in given.items()}
    positions = given.pop("positions", 3000)
    with pytest.raises(UserError, match=message) as caught:
        views(task, Inputs(**given), positions=positions)
    assert "\n" not in str(caught.value)


def test_phonemes_may_be_given_in_place_of_words(wav):
    made = views("tts", Inputs(phones="h ə l oʊ", prompt=wav))
    assert made["phone"].shape == (4, 2)


def test_a_view_that_the_shards_lack_is_named():
    with pytest.raises(UserError, match=r"its shards have no such view \| seen: audio, phone \| allowed: none"):
        make_tokenizers({}, load_task("tts"))
    recorded = {"audio": {"name": "codec", "options": {}, "version": "codec/other"}}
    with pytest.raises(UserError, match=r"tokenizer of view audio is not the one .* allowed: codec/other"):
        make_tokenizers(recorded, load_task("se"))
