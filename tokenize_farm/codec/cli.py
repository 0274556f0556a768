"""`uniaudio codec`: pack recordings, train, encode, decode, evaluate, measure speed."""

import json
import os
from pathlib import Path

import click
import numpy as np
import torch

from uniaudio.atomic import require_writable
from uniaudio.configs.codec import CodecConfig
from uniaudio.configs.load import load_config
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import save_wav
from uniaudio.tokenize_farm.codec import files
from uniaudio.tokenize_farm.codec.baselines import FORMS
from uniaudio.tokenize_farm.codec.weights import load_codec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = click.option("--weights", type=click.Path(path_type=Path), help="Weights file; the shipped one unless given.")
DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
OUT = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")


def _check_levels(levels: int | None, most: int) -> None:
    """Once, before any file is read."""
    if levels is not None and levels > most:
        raise UserError("--levels", seen=levels, allowed=f"1 to {most}")


def _device(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no CUDA device here", seen=f"--device {name}", remedy="use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError("no such device", seen=f"--device {name}", allowed="cpu, cuda, cuda:1")
    return device


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError("--levels are numbers, separated by commas", seen=text) from error


@click.group()
def codec() -> None:
    """Train, use and measure the universal codec.

    Example: uniaudio codec encode recordings/ --out codes/ --levels 3
    """


@codec.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@OUT
@click.option("--kbps", default=40.0, show_default=True, help="Rate of the Opus streams.")
@click.option("--part-mib", default=48, show_default=True, help="Largest file written.")
@click.option("--source-minutes", multiple=True, metavar="KIND=MINUTES", help="Most minutes of one source, by kind.")
def pack(manifest: Path, out: Path, kbps: float, part_mib: int, source_minutes: tuple[str, ...]) -> None:
    """Pack the training rows of MANIFEST into a few files for `train`."""
    from uniaudio.tokenize_farm.codec.data import pack_recordings
    from uniaudio.tokenize_farm.manifest import read_manifest

    try:
        limits = {kind: float(minutes) for kind, minutes in (item.split("=") for item in source_minutes)}
    except ValueError as error:
        raise UserError("--source-minutes looks like music=40", seen=" ".join(source_minutes)) from error
    require_writable(out, "--out")
    minutes = pack_recordings(read_manifest(manifest), out, kbps=kbps, part_mib=part_mib, source_minutes=limits)
    click.echo(json.dumps(minutes, indent=1))


@codec.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@DEVICE
@click.option("--stop-after", type=float, metavar="SECONDS", help="Stop and save after this time; the same command goes on.")
def train(config: str, overrides: tuple[str, ...], device: str, stop_after: float | None) -> None:
    """Train a codec by CONFIG (a YAML file or a shipped name), or go on where it stopped.

    Several GPUs: start it with `torchrun --nproc-per-node N -m uniaudio codec train ...`.

    Example: uniaudio codec train universal_16khz data.pack=pack output_dir=out --device cuda
    """
    from uniaudio.tokenize_farm.codec.group import Group
    from uniaudio.tokenize_farm.codec.run import train_codec

    settings = load_config(CodecConfig, config, folder="codecs", overrides=overrides)
    place = _device(device)
    if place.type == "cuda" and place.index is None and "LOCAL_RANK" in os.environ:
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    group = Group.from_environment(place)
    try:
        training = train_codec(settings, place, group, stop_after=stop_after)
    finally:
        group.close()
    if group.rank == 0:
        weights = training.output / "codec.safetensors"
        click.echo(f"step {training.step}, {training.seconds / 60:.1f} minutes, {training.progress:.1%} of the schedule: {weights}")


@codec.command()
@click.argument("source", type=click.Path(path_type=Path))
@OUT
@WEIGHTS
@DEVICE
@click.option("--levels", type=click.IntRange(1), help="Levels to write; all of them unless given.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32", show_default=True)
def encode(source: Path, out: Path, weights: Path | None, device: str, levels: int | None, dtype: str) -> None:
    """Encode a recording, or every recording below a folder, to OUT/STEM.npy: (frames, levels) uint16.

    Of a folder a file that cannot be used is told of and passed over; the exit code is then 3, and OUT can be decoded.

    Example: uniaudio codec encode recordings/ --out codes/ --levels 3
    """
    model = load_codec(weights, device=_device(device), dtype=DTYPES[dtype])
    _check_levels(levels, model.config.num_codebooks)

    def one(path: Path, target: Path) -> str:
        codes = model.encode(torch.from_numpy(files.read_audio(path))[None], num_codebooks=levels)[0]
        files.write_codes(target, codes.cpu().numpy().astype(np.uint16))
        return f"{target}: {codes.shape[0]} frames x {codes.shape[1]} levels"

    for line in files.each(files.pairs(source, out, files.AUDIO_SUFFIXES, ".npy"), one):
        click.echo(line)


@codec.command()
@click.argument("source", type=click.Path(path_type=Path))
@OUT
@WEIGHTS
@DEVICE
@click.option("--levels", type=click.IntRange(1), help="Use only the first levels of the codes.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32", show_default=True)
def decode(source: Path, out: Path, weights: Path | None, device: str, levels: int | None, dtype: str) -> None:
    """Decode a .npy of codes, or every one below a folder, to OUT/STEM.wav at 16 kHz.

    Of a folder a file that cannot be used is told of and passed over; the exit code is then 3.

    Example: uniaudio codec decode codes/ --out decoded/
    """
    model = load_codec(weights, device=_device(device), dtype=DTYPES[dtype])
    _check_levels(levels, model.config.num_codebooks)

    def one(path: Path, target: Path) -> str:
        codes = torch.from_numpy(files.read_codes(path).astype(np.int64))[None, :, :levels]
        samples = model.decode(codes)[0].cpu().numpy()
        save_wav(target, samples)
        return f"{target}: {len(samples) / model.config.sample_rate:.2f} s"

    for line in files.each(files.pairs(source, out, (".npy",), ".wav"), one):
        click.echo(line)


@codec.command()
@WEIGHTS
@DEVICE
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32", show_default=True)
@click.option("--clips", default=8, show_default=True, help="Clips of 10 s in a batch.")
@click.option("--compile/--eager", "compiled", default=False, show_default=True)
def speed(weights: Path | None, device: str, dtype: str, clips: int, compiled: bool) -> None:
    """Measure encoding and decoding, as multiples of real time."""
    from uniaudio.tokenize_farm.codec.speed import measure

    model = load_codec(weights, device=_device(device), dtype=DTYPES[dtype])
    click.echo(json.dumps(measure(model, clips=clips, compiled=compiled)))


@codec.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@OUT
@WEIGHTS
@DEVICE
@click.option("--levels", default="1,2,3,4,6,8", show_default=True, help="Numbers of levels, by commas.")
@click.option("--baseline", "baselines", multiple=True, metavar="NAME", help=f"Beside it; may be repeated: {FORMS}.")
@click.option("--clips", default=24, show_default=True, help="Clips of each kind.")
@click.option("--source", default="", help="Only rows whose source contains this text.")
@click.option("--recognise/--no-recognise", default=True, show_default=True, help="Character errors of Whisper base: minutes more.")
@click.option("--listen", default=2, show_default=True, help="Clips of each kind to keep as wavs below OUT/listen.")
def evaluate(
    manifest: Path,
    out: Path,
    weights: Path | None,
    device: str,
    levels: str,
    baselines: tuple[str, ...],
    clips: int,
    source: str,
    recognise: bool,
    listen: int,
) -> None:
    """Measure quality and code use on the held-out rows of MANIFEST: tables and a plot in OUT, wavs in OUT/listen.

    Example: uniaudio codec evaluate corpus/manifest.jsonl --out docs/codec --baseline opus:6 --baseline hifigan
    """
    from uniaudio.tokenize_farm.codec.evaluate import Evaluation, choose_clips
    from uniaudio.tokenize_farm.codec.evaluate import evaluate as measure
    from uniaudio.tokenize_farm.codec.report import write_report
    from uniaudio.tokenize_farm.manifest import read_manifest
    from uniaudio.tokenize_farm.measures.recognition import Recogniser

    require_writable(out, "--out")
    chosen = choose_clips((row for row in read_manifest(manifest) if source in (row.source or "")), per_kind=clips)
    evaluation = Evaluation(
        load_codec(weights, device=_device(device)),
        levels=_numbers(levels),
        baselines=list(baselines),
        recogniser=Recogniser(threads=torch.get_num_threads()) if recognise and any(row.kind == "speech" for row in chosen) else None,
        listen=out / "listen",
    )
    measure(evaluation, chosen, keep=listen, report=lambda text: click.echo(text, err=True))
    click.echo(write_report(out, evaluation.quality(), evaluation.codes()))
