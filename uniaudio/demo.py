"""`uniaudio demo`: recordings -> farm -> training -> audio, by the same commands a user would type, and one table at the end.

Owns the order of the commands; every step is a command line of its own, so whatever the demo does can be repeated by hand. The table:
`demo_report`. What is asked of the model: `demo_requests`.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import yaml
from rich.console import Console

from uniaudio.atomic import publish_bytes
from uniaudio.demo_report import demo_table
from uniaudio.demo_requests import Request, choose_requests, choose_tasks, wav_level
from uniaudio.errors import UserError

SILENT_DB = -50.0  # RMS below full scale: nothing that one would hear
DRAWS = 4


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
    "--audio-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="Your own recordings instead of the demo corpus.",
)
@click.argument("overrides", nargs=-1)
def demo(out: Path, audio_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Walk the whole way on this machine: fetch recordings, tokenize, train, generate. OVERRIDES go to the training.

    Example: uniaudio demo --out work/demo train.steps=100
    """
    folders = Folders(out)
    _same_recordings(out, audio_dir)
    seconds: dict[str, float] = {}
    source = [] if audio_dir is None else ["--audio-dir", str(audio_dir)]
    _step("corpus", seconds, ["corpus", "demo", "--out", str(folders.corpus), *source])
    tasks = f"data.tasks=[{', '.join(choose_tasks(_rows(folders)))}]"
    _step("tokenize", seconds, ["tokenize", "demo", f"manifest={folders.corpus / 'manifest.jsonl'}", f"output_dir={folders.shards}"])
    where = [f"data.shards={folders.shards}", f"train.output_dir={folders.run}"]
    _step("train", seconds, ["train", "demo_cpu", *where, tasks, *overrides])
    _rule("generate")
    started = perf_counter()
    trained = yaml.safe_load((folders.run / "config.yaml").read_text(encoding="utf-8"))["data"]["tasks"]
    requests = choose_requests(_rows(folders), trained, folders.corpus)
    audio = [*_decode_recording(folders), *(_generate(folders, request) for request in requests)]
    seconds["generate"] = perf_counter() - started
    Console().print(demo_table(folders.root, seconds, audio))


def _same_recordings(root: Path, audio_dir: Path | None) -> None:
    """One folder holds the demo of one source: shards and checkpoints of others must not be mixed in. UserError for another source."""
    record, source = root / "demo.json", str(audio_dir or "the demo corpus")
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))["recordings"]
        if before != source:
            raise UserError(
                f"{root} holds a demo of other recordings",
                seen=source,
                allowed=before,
                remedy="another folder (uniaudio demo --out DIR, or make demo OUT=DIR), or remove this one",
            )
    publish_bytes(record, json.dumps({"recordings": source}).encode())


def _rule(name: str) -> None:
    Console(stderr=True).rule(f"[bold]{name}")


def _step(name: str, seconds: dict[str, float], words: list[str]) -> None:
    _rule(name)
    started = perf_counter()
    _run(words)
    seconds[name] = perf_counter() - started


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


def _decode_recording(folders: Folders) -> list[tuple[str, str]]:
    """A held-out recording as its codes give it back: the best that any model of these codes can sound like."""
    clip = next((row["id"] for row in _rows(folders) if row.get("split") == "valid" and row.get("kind", "speech") == "speech"), None)
    if clip is None:
        return []
    _run(["shards", "show", str(folders.shards), "--clip", clip, "--out", str(folders.audio / "recording")])
    wavs = sorted((folders.audio / "recording").rglob("*.wav"))
    return [("held-out recording, from its codes", f"{wav}, {wav_level(wav):.0f} dB") for wav in wavs]


def _generate(folders: Folders, request: Request) -> tuple[str, str]:
    """Asks the model; what comes out silent is drawn again with the next seed."""
    wav = folders.audio / f"{request.name}.wav"
    for seed in range(DRAWS):
        _run(["generate", "--checkpoint", str(folders.run), *request.options, "--seed", str(seed), "--out", str(wav)])
        level = wav_level(wav)
        if level >= SILENT_DB:
            break
        click.echo(f"{wav} is silent ({level:.0f} dB); drawn again with another seed", err=True)
    silent = ", silent: the model has not learned enough" if level < SILENT_DB else ""
    return f"generated {request.name} ({request.origin})", f"{wav}, {level:.0f} dB{silent}"
