"""`uniaudio generate`: from a checkpoint and a user's inputs to a wav and a picture."""

import json
from pathlib import Path
from time import perf_counter

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from uniaudio.configs.tasks import TaskConfig, load_task
from uniaudio.errors import UserError
from uniaudio.pretrain.checkpoint import load_model, read_tokenizers
from uniaudio.pretrain.data.sequence import build_prompt_sequence
from uniaudio.pretrain.generate.generator import FRAME_RATE, Generated, generate_codes
from uniaudio.pretrain.generate.inputs import Inputs, make_tokenizers, read_views
from uniaudio.pretrain.generate.pictures import draw_clip
from uniaudio.pretrain.sampling import Sampling
from uniaudio.tokenize_farm.audio import save_wav
from uniaudio.tokenize_farm.tokenizers.resources import pick_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@click.command()
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Checkpoint folder, or a run's (its newest is taken).")
@click.option("--task", "task_name", required=True, help="A task that the checkpoint was trained on: tts, sound, ...")
@click.option("--text", help="Words to speak, or the description of a sound.")
@click.option("--instruction", help="How to speak, or what to change.")
@click.option("--language", default="en", show_default=True, help="Language of the words.")
@click.option("--prompt", type=click.Path(path_type=Path), help="Recording of the speaker to imitate.")
@click.option("--source", type=click.Path(path_type=Path), help="Recording to convert, clean or edit.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Wav to write; the picture lies beside it as .png.")
@click.option("--seed", default=0, show_default=True)
@click.option("--top-k", default=30, show_default=True)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--temperature", default=0.8, show_default=True, help="0 is greedy.")
@click.option("--min-seconds", default=0.2, show_default=True)
@click.option("--max-seconds", default=8.0, show_default=True)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(list(DTYPES)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
def generate(
    checkpoint: Path,
    task_name: str,
    text: str | None,
    instruction: str | None,
    language: str,
    prompt: Path | None,
    source: Path | None,
    out: Path,
    seed: int,
    top_k: int,
    top_p: float,
    temperature: float,
    min_seconds: float,
    max_seconds: float,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Generate one clip.

    Example: uniaudio generate --checkpoint work/demo/run --task tts --text "good morning" --prompt speaker.wav --out out.wav
    """
    sampling = Sampling(top_k=top_k, temperature=temperature, top_p=top_p)
    place = pick_device(device)
    model, run, vocabulary = load_model(checkpoint, place, DTYPES[precision])
    task = _task(task_name, run.data.tasks)
    tokenizers = make_tokenizers(read_tokenizers(checkpoint), task)
    inputs = Inputs(text=text, instruction=instruction, language=language, source=source, prompt=prompt)
    views = read_views(task, inputs, tokenizers, prompt_seconds=run.data.prompt_seconds)
    document = build_prompt_sequence(task, views, vocabulary, run.model.num_codebooks, prefix_lm=run.model.prefix_lm)
    limits = max(1, round(min_seconds * FRAME_RATE)), round(max_seconds * FRAME_RATE)
    started = perf_counter()
    with Progress(TextColumn("generate"), BarColumn(), TextColumn("{task.completed} frames"), console=Console(stderr=True)) as bar:
        row = bar.add_task("generate", total=limits[1])
        [clip] = generate_codes(
            model,
            vocabulary,
            [document],
            sampling=sampling,
            seed=seed,
            min_frames=limits[0],
            max_frames=limits[1],
            progress=lambda frames: bar.update(row, completed=frames),
        )
    elapsed = perf_counter() - started
    samples = tokenizers["audio"].decode(clip.codes_TQ)  # type: ignore[attr-defined]  # every audio tokenizer decodes
    save_wav(out, samples)
    draw_clip(out.with_suffix(".png"), samples, clip.codes_TQ, f"{task.name}: {text or source}")
    _report(clip, out, elapsed, as_json)


def _task(name: str, trained: tuple[str, ...]) -> TaskConfig:
    if name not in trained:
        raise UserError("the checkpoint does not know this task", seen=name, allowed=", ".join(trained))
    return load_task(name)


def _report(clip: Generated, out: Path, elapsed: float, as_json: bool) -> None:
    seconds = len(clip.codes_TQ) / FRAME_RATE
    facts = {
        "wav": str(out),
        "picture": str(out.with_suffix(".png")),
        "seconds": seconds,
        "stopped": clip.stopped,
        "frames_per_second": round(len(clip.codes_TQ) / elapsed, 1),
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    end = "ended by the model" if clip.stopped else "cut at --max-seconds"
    click.echo(f"{out}: {seconds:.2f} s, {end}, {seconds / elapsed:.1f} x real time; picture {out.with_suffix('.png')}")
