"""What the demo trains on and asks of its model, by what the recordings are: a pure function of the manifest's rows, and a wav's level."""

import math
import wave
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniaudio.errors import UserError

Row = dict[str, Any]
# A model trained for minutes knows the silence between words best: narrow draws fall into it and stay (-83 dB; drawn so: -14 dB).
WIDE = ["--temperature", "1.0", "--top-k", "200"]


@dataclass(frozen=True)
class Request:
    """One clip to generate. options: of `uniaudio generate`. origin: whether the model was trained on what it is asked for."""

    name: str
    options: list[str]
    origin: str


def _kind(row: Row) -> str:
    return row.get("kind", "speech")


def _spoken(rows: Iterable[Row]) -> list[Row]:
    """Speech whose speaker has a second recording in the same split: the prompt of a voice is never the clip itself."""
    rows = [row for row in rows if _kind(row) == "speech" and row.get("speaker")]
    company = Counter((row["speaker"], row.get("split")) for row in rows)
    return [row for row in rows if company[row["speaker"], row.get("split")] > 1]


def choose_tasks(rows: Sequence[Row]) -> list[str]:
    """Names of the tasks that these recordings serve: tts and sound where they can, else vc or music.

    Raises:
        UserError: they serve none.
    """
    train = [row for row in rows if row.get("split") != "valid"]
    captioned = {_kind(row) for row in train if row.get("caption")}
    spoken = _spoken(train)
    serves = {"tts": any(row.get("text") for row in spoken), "sound": "sound" in captioned}
    if not any(serves.values()):
        serves = {"vc": bool(spoken), "music": "music" in captioned}
    tasks = [task for task, served in serves.items() if served]
    if not tasks:
        raise UserError(
            "no task can be trained on these recordings",
            seen=", ".join(f"{kind} {count}" for kind, count in sorted(Counter(map(_kind, rows)).items())),
            allowed="two recordings of one speaker, or sounds or music with a description",
            remedy="put a .txt with its words or its description beside each recording; folders speech/, sound/, music/ name the kind",
        )
    return tasks


def choose_requests(rows: Sequence[Row], tasks: Sequence[str], folder: Path) -> list[Request]:
    """One request a task: a held-out sentence with its own speaker's voice, a held-out description; one of the training where none is.

    folder: where the rows' relative paths begin.
    """
    requests = []
    for task in tasks:
        if task in ("tts", "vc"):
            spoken = [row for row in _spoken(rows) if task == "vc" or len(row.get("text") or "") > 10]
            if not spoken:
                continue
            row, origin = _held_out_first(spoken)
            prompt = next(other for other in _spoken(rows) if other is not row and _voice(other) == _voice(row))
            options = ["--prompt", str(folder / prompt["audio_filepath"])]
            if task == "tts":
                options += ["--text", row["text"], "--language", row.get("language") or "en"]
            else:
                options += ["--source", str(folder / row["audio_filepath"])]
            requests.append(Request("speech", ["--task", task, *options, "--min-seconds", "2", *WIDE], origin))
        else:
            described = [row for row in rows if _kind(row) == task and row.get("caption")]
            row, origin = _held_out_first(described)
            options = ["--task", task, "--text", row["caption"], "--min-seconds", "2", "--max-seconds", "4"]
            requests.append(Request(task, options, origin))
    return requests


def _voice(row: Row) -> tuple[str, str | None]:
    return row["speaker"], row.get("split")


def _held_out_first(rows: Sequence[Row]) -> tuple[Row, str]:
    held_out = next((row for row in rows if row.get("split") == "valid"), None)
    return (held_out, "held out") if held_out else (rows[0], "of the training: none is held out")


def wav_level(path: Path) -> float:
    """RMS level of a 16-bit wav in dB below full scale; -120 for digital silence."""
    with wave.open(str(path), "rb") as file:
        samples = array("h", file.readframes(file.getnframes()))
    power = sum(sample * sample for sample in samples) / max(1, len(samples)) / 32_768**2
    return 10 * math.log10(max(power, 1e-12))
