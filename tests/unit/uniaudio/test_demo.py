"""The demo's choices, without running it: what is trained, what is asked of the model, what is silent, what may not be mixed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from uniaudio import demo
from uniaudio.demo_requests import choose_requests, choose_tasks, wav_level
from uniaudio.errors import UserError


def row(number: int, kind: str = "speech", split: str = "train", **fields: Any) -> dict[str, Any]:
    return {"id": f"{kind}{number}", "audio_filepath": f"{kind}{number}.wav", "kind": kind, "split": split, **fields}


def spoken(split: str = "train", count: int = 2, speaker: str = "anna") -> list[dict[str, Any]]:
    return [row(n, split=split, speaker=speaker, language="it", text=f"sentence {split} number {n}") for n in range(count)]


SOUNDS = [row(0, "sound", caption="rain"), row(1, "sound", "valid", caption="wind")]
MUSIC = [row(0, "music", caption="a slow song")]


@pytest.mark.parametrize(
    ("rows", "tasks"),
    [
        (spoken() + SOUNDS + MUSIC, ["tts", "sound"]),
        (spoken(), ["tts"]),
        (SOUNDS, ["sound"]),
        (MUSIC, ["music"]),
        ([{**line, "text": None} for line in spoken()] + MUSIC, ["vc", "music"]),
        (spoken(count=1) + SOUNDS, ["sound"]),
    ],
)
def test_tasks_are_those_that_the_recordings_serve(rows: list[dict[str, Any]], tasks: list[str]) -> None:
    assert choose_tasks(rows) == tasks


def test_recordings_that_serve_no_task_are_refused_with_what_to_add() -> None:
    with pytest.raises(UserError, match=r"no task can be trained.*seen: speech 1.*two recordings of one speaker.*put a \.txt"):
        choose_tasks(spoken(count=1))


def test_a_held_out_sentence_is_asked_for_with_another_held_out_recording_of_its_speaker() -> None:
    rows = spoken() + spoken("valid", speaker="bea") + SOUNDS
    speech, sound = choose_requests(rows, ["tts", "sound"], Path("corpus"))
    words = dict(zip(speech.options[::2], speech.options[1::2]))
    assert speech.origin == sound.origin == "held out"
    assert (words["--text"], words["--prompt"], words["--language"]) == ("sentence valid number 0", "corpus/speech1.wav", "it")
    assert sound.options[3] == "wind"


def test_without_held_out_recordings_the_request_says_so() -> None:
    [speech] = choose_requests(spoken(), ["tts"], Path("corpus"))
    assert speech.origin == "of the training: none is held out"
    [voice] = choose_requests(spoken(), ["vc"], Path("corpus"))
    assert voice.options[:6] == ["--task", "vc", "--prompt", "corpus/speech1.wav", "--source", "corpus/speech0.wav"]


def write_wav(path: Path, amplitude: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(1600, amplitude), 16_000, subtype="PCM_16")


def test_level_is_rms_below_full_scale(tmp_path: Path) -> None:
    for amplitude, level in ((0.5, -6.0), (0.01, -40.0), (0.0, -120.0)):
        write_wav(tmp_path / "a.wav", amplitude)
        assert wav_level(tmp_path / "a.wav") == pytest.approx(level, abs=0.1)


@pytest.mark.parametrize(("loud_at", "seeds", "told"), [(2, ["0", "1", "2"], "-6 dB"), (9, ["0", "1", "2", "3"], "silent: the model")])
def test_a_silent_wav_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loud_at: int, seeds: list[str], told: str) -> None:
    asked: list[str] = []

    def run(words: list[str]) -> None:
        seed = words[words.index("--seed") + 1]
        asked.append(seed)
        write_wav(Path(words[-1]), 0.5 if int(seed) >= loud_at else 0.0)

    monkeypatch.setattr(demo, "_run", run)
    what, line = demo._generate(demo.Folders(tmp_path), demo.Request("sound", ["--task", "sound"], "held out"))
    assert asked == seeds and told in line and what == "generated sound (held out)"


def test_a_demo_of_other_recordings_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "demo.json").write_text(json.dumps({"recordings": "the demo corpus"}))
    result = CliRunner().invoke(demo.demo, ["--out", str(tmp_path / "demo"), "--audio-dir", str(tmp_path / "mine")])
    message = str(result.exception)
    assert "holds a demo of other recordings" in message and "allowed: the demo corpus" in message and "make demo OUT=DIR" in message
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["demo.json"]


def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the demo stopped at: uniaudio config nowhere .*exit code 2.*run it again"):
        demo._run(["config", "nowhere"])
