"""`uniaudio generate`: from a checkpoint and a user's inputs to a wav and a picture; from a manifest to a folder of them."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from uniaudio.atomic import require_writable
from uniaudio.configs.section import LARGEST_SEED
from uniaudio.errors import PartlyDone, UserError
from uniaudio.pretrain.generate.api import Clip, Generator, Job, Options, Precision
from uniaudio.pretrain.generate.inputs import Inputs, require_used
from uniaudio.pretrain.generate.manifest import Row, read_requests
from uniaudio.pretrain.generate.pictures import draw_clip
from uniaudio.pretrain.generate.rank import Rank
from uniaudio.pretrain.generate.request import FRAME_RATE
from uniaudio.pretrain.sampling import Sampling
from uniaudio.tokenize_farm.audio import save_wav

FILE = click.Path(path_type=Path)


@click.command()
@click.option("--checkpoint", required=True, type=FILE, help="Checkpoint folder, export folder, or a run's (its newest is taken).")
@click.option("--task", help="A task that the checkpoint was trained on: tts, sound, ...")
@click.option("--text", help="Words to speak or sing, those of a recording to edit, or the description of a sound.")
@click.option("--phones", help="What to speak, as phonemes with spaces between, instead of --text.")
@click.option("--instruction", help="How to speak, or what to change.")
@click.option("--language", default="en", show_default=True, help="Language of the words.")
@click.option("--prompt", type=FILE, help="Recording of the speaker to imitate.")
@click.option("--source", type=FILE, help="Recording to convert, clean, edit, or sing after.")
@click.option("--alignment", type=FILE, help="TextGrid or CTM with the times of the words in --source.")
@click.option("--midi", type=FILE, help="MIDI file with the notes to sing; those of --source unless given.")
@click.option("--replace", help="Speech editing: 'old words=new words'.")
@click.option("--manifest", type=FILE, help="JSON lines with these inputs and an id; --out is then a folder.")
@click.option("--out", type=FILE, help="Wav to write; the picture lies beside it as .png.")
@click.option("--stream", is_flag=True, help="Write 16-bit PCM at 16 kHz to standard output as it is made.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, LARGEST_SEED))
@click.option("--top-k", default=30, show_default=True)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--temperature", default=0.8, show_default=True, help="0 is greedy.")
@click.option("--guidance", default=1.0, show_default=True, help="Above 1: further away from what comes without conditions.")
@click.option("--repetition-penalty", default=1.0, show_default=True, help="Above 1: codes of the last second become less likely.")
@click.option("--candidates", default=1, show_default=True, help="Draw so many and give the best.")
@click.option("--rank", default="score", show_default=True, type=click.Choice(get_args(Rank)), help="What is best.")
@click.option("--min-seconds", type=float, help="Default: 0.2, or the length of --source where the task follows it.")
@click.option("--max-seconds", type=float, help="Default: 20, or the length of --source where the task follows it.")
@click.option("--rows", default=8, show_default=True, help="Sequences side by side, with --manifest.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(get_args(Precision)), help="Of the weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
def generate(
    checkpoint: Path,
    task: str | None,
    manifest: Path | None,
    out: Path | None,
    stream: bool,
    rows: int,
    device: str,
    precision: Precision,
    as_json: bool,
    **given: Any,
) -> None:
    """Generate one clip, or those of a manifest: a line that cannot be done is told of, the others are, and the exit code is then 3.

    Example: uniaudio generate --checkpoint work/demo/run --task tts --text "good morning" --prompt speaker.wav --out out.wav
    """
    options, inputs = _options(given), Inputs(**given)
    if out is None and not stream:
        raise UserError("nothing says where the sound goes", remedy="--out FILE.wav, or --stream")
    if task is None and manifest is None:
        raise UserError("no task", remedy="--task tts (or another that the checkpoint knows)")
    if out is not None:  # told before minutes of generating
        if manifest is None and out.is_dir():
            raise UserError("--out is a folder", seen=out, allowed="FILE.wav", remedy="a file, or --manifest, which writes a folder")
        require_writable(out if manifest else out.parent, "--out")
    if stream and options.candidates > 1:
        raise UserError("--stream plays one candidate as it is made", seen=options.candidates, remedy="--candidates 1, or --out alone")
    if manifest is not None and (stream or out is None):
        raise UserError("--manifest writes a folder", remedy="--out DIR, without --stream")
    if rows < 1:
        raise UserError("--rows", seen=rows, allowed=">= 1")
    apart = 2 if options.sampling.guidance != 1 else 1
    needed = max(rows, apart) if manifest else apart * (1 if stream else options.candidates)
    generator = Generator.load(checkpoint, device=device, precision=precision, rows=needed)
    if manifest is not None:
        assert out is not None
        uses = generator.uses(options.rank)
        requests = list(read_requests(manifest, task=task, inputs=inputs, options=options, uses=uses))
        if not requests:
            raise UserError("--manifest holds no line", seen=manifest, allowed="one JSON object a line")
        require_used(inputs, uses, sorted({row.task for row in requests} & uses.keys()) or list(uses))
        _batch(generator, requests, out, as_json)
    elif stream:
        assert task is not None
        _stream(generator, (task, inputs, options), out)
    else:
        assert task is not None and out is not None
        _one(generator, (task, inputs, options), out, as_json)


def _options(given: dict[str, Any]) -> Options:
    """Takes the options of the draw out of the command's arguments."""
    sampling = Sampling(
        top_k=given.pop("top_k"),
        temperature=given.pop("temperature"),
        top_p=given.pop("top_p"),
        guidance=given.pop("guidance"),
        penalty=given.pop("repetition_penalty"),
    )
    return Options(sampling, **{name: given.pop(name) for name in ("seed", "min_seconds", "max_seconds", "candidates", "rank")})


def _one(generator: Generator, job: Job, out: Path, as_json: bool) -> None:
    started = perf_counter()
    with ExitStack() as stack:
        bar = Progress(TextColumn("generate"), BarColumn(), TextColumn("{task.completed} frames"), console=Console(stderr=True))
        row = bar.add_task("generate", total=None)

        def show(frames: int) -> None:
            if not bar.live.is_started:  # not before the inputs are known to be good: a fault is one line
                stack.enter_context(bar)
            bar.update(row, completed=frames)

        clip = generator.generate(*job, progress=show)
    elapsed = perf_counter() - started
    facts = _save(clip, out, job[1]) | {"frames_per_second": round(len(clip.codes_TQ) / elapsed, 1)}
    if as_json:
        click.echo(json.dumps(facts))
        return
    end = "ended by the model" if clip.stopped else "at its longest"
    speed = facts["seconds"] / elapsed
    click.echo(f"{out}: {facts['seconds']:.2f} s, {end}, {speed:.1f} x real time; picture {facts['picture']}")


def _save(clip: Clip, out: Path, inputs: Inputs) -> dict[str, Any]:
    """Writes wav and picture; what there is to say about them."""
    save_wav(out, clip.samples)
    picture = out.with_suffix(".png")
    draw_clip(picture, clip.samples, clip.codes_TQ, f"{clip.task}: {inputs.text or inputs.instruction or inputs.source}")
    seconds = len(clip.codes_TQ) / FRAME_RATE
    return {"wav": str(out), "picture": str(picture), "seconds": seconds, "stopped": clip.stopped, "score": clip.score, "seed": clip.seed}


def _batch(generator: Generator, rows: list[Row], out: Path, as_json: bool) -> None:
    """Every row to OUT/ID.wav and .png, OUT/results.jsonl with a line each; fails at the end where rows failed."""
    faults: dict[int, UserError] = {}
    out.mkdir(parents=True, exist_ok=True)
    started, seconds = perf_counter(), 0.0
    jobs: Iterator[Job] = ((row.task, row.inputs, row.options) for row in rows)
    lines: dict[int, dict[str, Any]] = {}
    with Progress(TextColumn("generate"), BarColumn(), TextColumn("{task.completed}/{task.total}"), console=Console(stderr=True)) as bar:
        shown = bar.add_task("generate", total=len(rows))
        for number, clip in generator.batch(jobs, failed=faults.__setitem__):
            facts = _save(clip, out / f"{rows[number].id}.wav", rows[number].inputs)
            lines[number], seconds = {"id": rows[number].id, "task": clip.task, **facts}, seconds + facts["seconds"]
            bar.advance(shown)
    lines |= {number: {"id": rows[number].id, "error": str(error)} for number, error in faults.items()}
    (out / "results.jsonl").write_text("".join(json.dumps(lines[number]) + "\n" for number in sorted(lines)), encoding="utf-8")
    elapsed = perf_counter() - started
    facts = {"clips": len(rows) - len(faults), "failed": len(faults), "seconds": round(seconds, 2), "times_real_time": seconds / elapsed}
    click.echo(json.dumps(facts) if as_json else f"{out}: {facts['clips']} clips, {seconds:.1f} s, {seconds / elapsed:.1f} x real time")
    if faults:
        first, kind = min(faults), UserError if len(faults) == len(rows) else PartlyDone
        raise kind(f"{len(faults)} of {len(rows)} requests failed, the first {rows[first].id}: {faults[first]}")


def _stream(generator: Generator, job: Job, out: Path | None) -> None:
    """PCM to standard output chunk by chunk; the whole to `out` where given."""
    parts = []
    for samples in generator.stream(*job):
        parts.append(samples)
        sys.stdout.buffer.write(np.clip(np.round(samples * 32_768), -32_768, 32_767).astype("<i2").tobytes())
        sys.stdout.buffer.flush()
    if out is not None:
        save_wav(out, np.concatenate(parts) if parts else np.zeros(0, np.float32))
