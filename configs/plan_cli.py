"""`uniaudio plan`: what a training will need, before anything is started. Arithmetic on the config alone."""

import json
import math
from dataclasses import asdict

import click

from uniaudio.configs.estimate import bubble_share, frame_flops, memory_gb, not_modelled, padded_vocabulary_size, step_seconds
from uniaudio.configs.flops import PEAK_FLOPS, trained_count
from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

WITHOUT_FP8 = {"A100"}
GPU_MEMORY_GB = {"A100": 80.0, "H100": 80.0, "H200": 141.0, "B200": 180.0}


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1)
@click.option("--gpu", type=click.Choice(list(PEAK_FLOPS)), default="H100", show_default=True)
@click.option("--gpus-per-node", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--price", type=click.FloatRange(min=0), help="Of one GPU for an hour, in any currency.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def plan(run: str, overrides: tuple[str, ...], gpu: str, gpus_per_node: int, price: float | None, as_json: bool) -> None:
    """Predict memory, step time, pipeline bubble, hours and cost of a training for its layout. How near it is: docs/training.md.

    Example: uniaudio plan paper_1b --gpu H100 --price 2.5 parallel.data_parallel_size=8
    """
    config = load_config(RunConfig, run, folder="runs", overrides=overrides)
    if config.train.precision != "bf16":
        raise UserError(
            "a plan is of bf16 training on GPUs", seen=f"train.precision {config.train.precision}", remedy="set train.precision=bf16"
        )
    if price is not None and not math.isfinite(price):
        raise UserError("--price is no price", seen=price, allowed="a number, at least 0")
    if config.train.fp8 and gpu in WITHOUT_FP8:
        raise UserError(
            "train.fp8: this GPU has no products in 8 bits",
            seen=gpu,
            allowed=", ".join(name for name in PEAK_FLOPS if name not in WITHOUT_FP8),
        )
    if gpus_per_node % (tensor := config.parallel.tensor_parallel_size):
        raise UserError(
            "parallel.tensor_parallel_size does not divide the GPUs of a node: a tensor-parallel group lies within one",
            seen=tensor,
            allowed=", ".join(str(size) for size in range(1, gpus_per_node + 1) if gpus_per_node % size == 0),
            remedy="another parallel.tensor_parallel_size or --gpus-per-node",
        )
    record = predict(config, gpu, gpus_per_node, price)
    if as_json:
        click.echo(json.dumps(record))
        return
    memory, step = record["memory_gb"], record["step_seconds"]
    trained = f", {record['trained'] / 1e6:,.2f} M trained" if record["frozen"] else ""
    gpus, hours = config.parallel.world_size, record["hours"]
    lines = [
        ("parameters", f"{record['parameters'] / 1e6:,.1f} M{trained}"),
        ("GPUs", f"{gpus} x {gpu}"),
        ("memory of a GPU", f"{record['memory_total_gb']:.1f} of {GPU_MEMORY_GB[gpu]:g} GB: " + _parts(memory, ".1f")),
        ("step", f"{1000 * record['step_total_seconds']:.0f} ms: " + _parts({name: 1000 * value for name, value in step.items()}, ".0f")),
        ("pipeline bubble", f"{100 * record['bubble']:.1f} %"),
        ("speed", f"{record['frames_per_second']:,.0f} frames/s, MFU {100 * record['mfu']:.1f} %"),
        (
            "the whole run",
            f"{config.train.steps:,} steps, {record['frames'] / 1e9:.2f} G frames, {hours:,.1f} h = {hours * gpus:,.0f} GPU hours",
        ),
    ]
    if price is not None:
        lines.append(("cost", f"{record['cost']:,.0f}"))
    if record["memory_total_gb"] > GPU_MEMORY_GB[gpu]:
        lines.append(
            ("does NOT fit", "fewer data.rows_per_micro_batch, parallel.recompute, parallel.zero_stage, or more GPUs to cut it over")
        )
    if record["not_modelled"]:
        lines.append(("not modelled", record["not_modelled"]))
    for name, text in lines:
        click.echo(f"{name:17s} {text}")


def _parts(parts: dict[str, float], form: str) -> str:
    return " + ".join(f"{name.replace('_', ' ')} {value:{form}}" for name, value in parts.items() if value > 0)


def predict(run: RunConfig, gpu: str, gpus_per_node: int, price: float | None) -> dict:
    """The numbers of a plan, by name; seconds, GB (1e9 bytes), hours."""
    memory, step = memory_gb(run), step_seconds(run, gpu=gpu, gpus_per_node=gpus_per_node)
    rows = padded_vocabulary_size(run.model)
    speed = run.frames_per_step / step.total
    hours = run.train.steps * step.total / 3600
    trained, frozen = trained_count(run, rows)
    return {
        "parameters": trained + frozen,
        "trained": trained,
        "frozen": frozen,
        "memory_gb": asdict(memory),
        "memory_total_gb": memory.total,
        "step_seconds": asdict(step),
        "step_total_seconds": step.total,
        "not_modelled": not_modelled(run),
        "bubble": bubble_share(run),
        "frames_per_second": speed,
        "mfu": speed * frame_flops(run, rows) / (PEAK_FLOPS[gpu] * run.parallel.world_size),
        "frames": run.train.steps * run.frames_per_step,
        "hours": hours,
        "cost": None if price is None else price * hours * run.parallel.world_size,
    }
