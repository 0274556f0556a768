"""Trains the shipped codec on a GPU host for so many seconds, judges it on held-out clips, and leaves the weights in small files.

The host needs no network and no package that computes PESQ: the losses after P.862 and STOI judge (.998 and .9998 correlated with the
packages). A second call with the same --state goes on exactly; without it, `train.init_from=WEIGHTS` starts from the last weights.
docs/codec/training.md has the commands in order.

    python tests/gpu/train_codec.py held-out corpus/manifest.jsonl --out held_out
    python tests/gpu/train_codec.py collect PART_FOLDER --pack pack             # once for each part that was copied to the host
    python tests/gpu/train_codec.py train --pack pack --held-out held_out --state state --out OUT --seconds 500 [OVERRIDES]
"""

import json
import shutil
from pathlib import Path

import click
import numpy as np
import soundfile
import torch

from uniaudio.configs.codec import CodecConfig
from uniaudio.configs.load import load_config
from uniaudio.tokenize_farm.audio import SAMPLE_RATE, load_audio
from uniaudio.tokenize_farm.codec.evaluate import choose_clips
from uniaudio.tokenize_farm.codec.losses import ReconstructionLoss
from uniaudio.tokenize_farm.codec.model import UniversalCodec
from uniaudio.tokenize_farm.codec.perceptual import IntelligibilityLoss, QualityLoss
from uniaudio.tokenize_farm.codec.train import CodecTraining
from uniaudio.tokenize_farm.codec.weights import load_codec
from uniaudio.tokenize_farm.manifest import read_manifest

LEVELS = (3, 8)
PIECE_BYTES = 15 << 20
UNSEEN_SPEAKER = "asterisk-core-sounds-fr"
path = click.Path(path_type=Path)


@click.group()
def cli() -> None:
    """Codec training on a GPU host."""


@cli.command()
@click.argument("manifest", type=path)
@click.option("--out", type=path, required=True)
@click.option("--clips", default=24)
def held_out(manifest: Path, out: Path, clips: int) -> None:
    """Writes held-out clips as FLAC: the unseen speaker's speech, and a third as many of music and sound."""
    rows = list(read_manifest(manifest))
    chosen = choose_clips((row for row in rows if UNSEEN_SPEAKER in (row.source or "")), per_kind=clips)
    others = choose_clips((row for row in rows if row.kind in ("music", "sound")), per_kind=clips // 3)
    out.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate([*chosen, *others]):
        samples = load_audio(row.audio_filepath, offset=row.offset, duration=row.duration)
        soundfile.write(out / f"{row.kind}-{number:02d}.flac", samples.clip(-1, 1), SAMPLE_RATE)
    click.echo(f"{len(chosen)} clips of speech, {len(others)} others in {out}")


@cli.command()
@click.argument("folder", type=path)
@click.option("--pack", type=path, required=True)
def collect(folder: Path, pack: Path) -> None:
    """Puts the parts of a pack that lie in FOLDER beside those that came before, and says what is still missing."""
    pack.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        shutil.copy(file, pack / file.name)
    index = pack / "index.json"
    wanted = {f"part-{block[0]:03d}.bin" for block in json.loads(index.read_text())["blocks"]} if index.exists() else {"index.json"}
    missing = sorted(name for name in wanted if not (pack / name).exists())
    click.echo(f"missing: {', '.join(missing)}" if missing else "the pack is whole")


@cli.command()
@click.option("--pack", type=path, required=True)
@click.option("--held-out", "clips", type=path, required=True)
@click.option("--state", type=path, required=True, help="Folder of the training, kept between calls.")
@click.option("--out", type=path, required=True, help="Folder for what is copied back.")
@click.option("--seconds", type=float, required=True, help="Of this call's training, judging not counted.")
@click.option("--judge-every", default=150.0, show_default=True)
@click.option("--config", default="universal_16khz", show_default=True)
@click.argument("overrides", nargs=-1)
def train(pack: Path, clips: Path, state: Path, out: Path, seconds: float, judge_every: float, config: str, overrides: tuple) -> None:
    """Trains, judges now and then, and writes OUT/judged.md, OUT/log.jsonl and OUT/codec.safetensors.NN."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = [f"data.pack={pack}", f"output_dir={state}", "experiment=null", *overrides]
    training = CodecTraining(load_config(CodecConfig, config, folder="codecs", overrides=given), device)
    table = state / "judged.md"
    if not table.exists():
        state.mkdir(parents=True, exist_ok=True)
        columns = ["step", "minutes", *(f"{name} {n}" for n in LEVELS for name in ("PESQ-wb", "STOI", "mel music", "mel sound"))]
        table.write_text("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|\n")
        _judge(training, clips, table)
    target = training.seconds + seconds
    while training.progress < 1 and training.seconds < target:
        training.run(max_seconds=min(judge_every, target - training.seconds), report=lambda done, text: click.echo(f"{done:.1%} {text}"))
        _judge(training, clips, table)
        _copy_out(state, out)
    click.echo(table.read_text())


def _copy_out(state: Path, out: Path) -> None:
    """The table, the log and the weights as of now: a host may go at any moment."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("judged.md", "log.jsonl"):
        if (state / name).exists():
            shutil.copy(state / name, out / name)
    data = (state / "codec.safetensors").read_bytes()
    for number, start in enumerate(range(0, len(data), PIECE_BYTES)):
        (out / f"codec.safetensors.{number:02d}").write_bytes(data[start : start + PIECE_BYTES])


def _judge(training: CodecTraining, clips: Path, table: Path) -> None:
    """Adds a line to the table: means over the held-out clips, of the weights as they would be shipped."""
    training.save()
    codec = load_codec(training.output / "codec.safetensors", device=training.device)
    fast, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False  # judged as it is used: in float32
    cells = [str(training.step), f"{training.seconds / 60:.1f}"]
    for levels in LEVELS:
        scores: dict[str, list[float]] = {"pesq": [], "stoi": [], "music": [], "sound": []}
        for file in sorted(clips.glob("*.flac")):
            _score(codec, file, levels, scores)
        cells += [f"{np.mean(values):.3f}" if values else "-" for values in scores.values()]
    torch.backends.cuda.matmul.allow_tf32 = fast
    line = "| " + " | ".join(cells) + " |\n"
    with table.open("a") as handle:
        handle.write(line)
    click.echo(line, nl=False)


@torch.inference_mode()
def _score(codec: UniversalCodec, file: Path, levels: int, scores: dict[str, list[float]]) -> None:
    samples, _ = soundfile.read(file, dtype="float32")
    clip = torch.from_numpy(samples)[None].to(codec.spectral.window.device)
    copy = codec.decode(codec.encode(clip, num_codebooks=levels))[:, : clip.shape[1]].clamp(-1, 1)
    kind = file.name.split("-")[0]
    if kind == "speech":
        scores["pesq"].append(float(QualityLoss().to(clip.device).mos(clip, copy)))
        scores["stoi"].append(float(IntelligibilityLoss().to(clip.device).stoi(clip, copy)[0]))
    elif kind in scores:
        scores[kind].append(float(ReconstructionLoss().to(clip.device)(clip, copy)[0]))


if __name__ == "__main__":
    cli()
