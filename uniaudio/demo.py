"""`uniaudio demo`: recordings -> farm -> training -> audio, by the same commands a user would type, and one table at the end.

Owns the order of the commands and the table; every step is a command line of its own, so whatever the demo does can be repeated by hand.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from uniaudio.errors import UserError


@dataclass(frozen=True)
class Folders:
    """Everything the demo writes lies below one folder."""

    root: Path

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def audio(self) -> Path:
        return self.root / "audio"


@click.command()
@click.option(
    "--out", default="work/demo", show_default=True, type=click.Path(path_type=Path), help="Folder for everything the demo makes."
)
@click.option(
    "--audio-dir", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Your own recordings instead of the demo corpus."
)
@click.argument("overrides", nargs=-1)
def demo(out: Path, audio_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Walk the whole way on this machine: fetch recordings, tokenize, train, generate. OVERRIDES go to the training.

    Example: uniaudio demo --out work/demo train.steps=100
    """
    folders = Folders(out)
    console = Console(stderr=True)
    seconds: dict[str, float] = {}
    for name, words in _commands(folders, audio_dir, overrides):
        console.rule(f"[bold]{name}")
        started = perf_counter()
        _run(words)
        seconds[name] = perf_counter() - started
    console.rule("[bold]generate")
    started = perf_counter()
    wavs = [*_decode_recording(folders), *(_generate(folders, request) for request in _requests(folders))]
    seconds["generate"] = perf_counter() - started
    Console().print(_table(folders, seconds, wavs))


def _commands(folders: Folders, audio_dir: Path | None, overrides: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    corpus = ["corpus", "demo", "--out", str(folders.corpus)]
    if audio_dir is not None:
        corpus += ["--audio-dir", str(audio_dir)]
    tokenize = ["tokenize", "demo", f"manifest={folders.corpus / 'manifest.jsonl'}", f"output_dir={folders.shards}"]
    train = ["train", "demo_cpu", f"data.shards={folders.shards}", f"train.output_dir={folders.run}", *overrides]
    return [("corpus", corpus), ("tokenize", tokenize), ("train", train)]


def _run(words: list[str]) -> None:
    code = subprocess.run([sys.executable, "-m", "uniaudio", *words], check=False).returncode
    if code:
        raise UserError(
            f"the demo stopped at: uniaudio {' '.join(words)}",
            seen=f"exit code {code}",
            remedy="mend what the line above says, then run it again",
        )


def _rows(folders: Folders) -> list[dict[str, Any]]:
    lines = (folders.corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _requests(folders: Folders) -> list[tuple[str, list[str]]]:
    """(name, options of `generate`): a held-out sentence by its own speaker, and a described sound, where the corpus has them."""
    rows = _rows(folders)
    requests = []
    spoken = [row for row in rows if row.get("kind", "speech") == "speech" and row.get("text") and len(row["text"]) > 20]
    if len(spoken) >= 2:
        first, other = spoken[0], next((row for row in spoken[1:] if row.get("speaker") == spoken[0].get("speaker")), spoken[1])
        prompt = folders.corpus / other["audio_filepath"]
        words = ["--task", "tts", "--text", first["text"], "--language", first.get("language") or "en", "--prompt", str(prompt)]
        requests.append(("speech", [*words, "--min-seconds", "2"]))
    described = [row["caption"] for row in rows if row.get("kind") == "sound" and row.get("caption")]
    if described:
        requests.append(("sound", ["--task", "sound", "--text", described[0], "--min-seconds", "2", "--max-seconds", "4"]))
    return requests


def _decode_recording(folders: Folders) -> list[str]:
    """A held-out recording as its codes give it back: the best that any model of these codes can sound like."""
    clip = next((row["id"] for row in _rows(folders) if row.get("split") == "valid" and row.get("kind", "speech") == "speech"), None)
    if clip is None:
        return []
    _run(["shards", "show", str(folders.shards), "--clip", clip, "--out", str(folders.audio / "recording")])
    return [str(path) for path in sorted((folders.audio / "recording").rglob("*.wav"))]


def _generate(folders: Folders, request: tuple[str, list[str]]) -> str:
    name, words = request
    wav = folders.audio / f"{name}.wav"
    _run(["generate", "--checkpoint", str(folders.run), *words, "--out", str(wav)])
    return str(wav)


def _table(folders: Folders, seconds: dict[str, float], wavs: list[str]) -> Table:
    """Clips by class, drops by reason, farm speed, losses beside the unigram entropy, wavs, the MLflow command."""
    table = Table("what", "result", title="uniaudio demo", title_justify="left")
    for what, result in [*_farm_lines(folders), *_training_lines(folders)]:
        table.add_row(what, result)
    for wav in wavs:
        table.add_row("audio to hear", wav)
    table.add_row("seconds", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    table.add_row("MLflow", f"mlflow ui --backend-store-uri sqlite:///{(folders.root / 'mlflow.db').resolve()}")
    return table


def _farm_lines(folders: Folders) -> list[tuple[str, str]]:
    farm = json.loads((folders.shards / "farm.json").read_text(encoding="utf-8"))
    totals, work = farm["totals"], farm["last_work"]
    classes = [
        f"{kind} {totals['clips_by_kind'][kind]} clips, {seconds / 60:.1f} min"
        for kind, seconds in sorted(totals["seconds_by_kind"].items())
    ]
    drops = [f"{reason} {count}" for reason, count in totals["dropped_by_reason"].items()]
    return [
        ("clips", "; ".join(classes)),
        ("dropped clips", ", ".join(drops) or "none"),
        ("farm", f"{work['times_real_time']:.1f} x real time, {work['workers']} workers"),
    ]


def _training_lines(folders: Folders) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (folders.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = next(line for line in reversed(lines) if "unigram" in line)
    held_out = next((line for line in reversed(lines) if "valid/loss" in line), None)
    rows = [
        (
            "training loss",
            f"{trained['loss']:.3f} nats a code after {trained['step']} steps (unigram entropy of the same codes {trained['unigram']:.3f})",
        ),
        ("training speed", f"{trained['frames_per_second']:.0f} frames/s"),
    ]
    if held_out is not None:
        loss, unigram = held_out["valid/loss"], held_out["valid/unigram"]
        verdict = "below it" if loss < unigram else "NOT below it"
        rows.insert(1, ("held-out loss", f"{loss:.3f} nats a code (unigram entropy of the same codes {unigram:.3f}: {verdict})"))
    return rows
