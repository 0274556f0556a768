"""Times optimizer steps on one GPU: the real data path and engine, in one process, a row of results for each size and variant.

    python3 tests/gpu/steps.py --out OUT --rows 4,8 --seconds 150 [--run paper_1b] [--codebooks 3] [--variant "train.cuda_graphs=false"]
        [--variant "train.fp8=true"] [--save] [--parity] [OVERRIDES]

rows x 2048 frames a step. OUT/steps.csv: median and spread of a step that is waited for, and the mean of ten in a row that are not (as in
training; frames/s and MFU are of these), what the host alone needs to enqueue a step, the parts on the device's clock, memory; OUT/steps.md
the same to read. Variants are overrides that are tried one after another for each size. The shards are random and serve seven tasks:
`--run all_tasks_30m` needs `data.tasks=[tts,vc,se,tse,svs,sound,music] data.mix={}`. `--save`: one checkpoint at the end of each: how long
the step waits, bytes/s to disk. `--parity`: first three steps of a small model with the Triton kernels in bf16 beside the torch path in
fp32. On a machine without GPU it runs with `train.device=cpu train.precision=fp32` and a small model: then it says that the script works,
nothing else.
"""

import argparse
import csv
import gc
import itertools
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from random_shards import write_random_shards

from uniaudio.configs.estimate import step_seconds
from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.pretrain import launch
from uniaudio.pretrain.checkpoint import Identity
from uniaudio.pretrain.checkpoint_writer import CheckpointWriter
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.engine import Engine
from uniaudio.pretrain.metrics import Speed
from uniaudio.pretrain.parallel import layout as layouts
from uniaudio.pretrain.train import choose_device, make_loaders, make_model

WARM_UP, TIMED, RUNNING = 4, 24, 10


def configure(arguments: argparse.Namespace, rows: int, *more: str) -> RunConfig:
    """The run on one GPU with these rows."""
    settings = [
        f"data.shards={arguments.out / f'shards-{arguments.codebooks}'}", "parallel.data_parallel_size=1", "train.steps=1000",
        f"model.num_codebooks={arguments.codebooks}", f"data.rows_per_micro_batch={rows}", f"train.output_dir={arguments.out / 'run'}",
    ]  # fmt: skip
    return load_config(RunConfig, arguments.run, folder="runs", overrides=[*settings, *arguments.overrides, *more])


def build(run: RunConfig) -> tuple[Engine, Any, Identity]:
    """Engine and loaders of a world of one."""
    launch.join(run.parallel)
    device = choose_device(run.train.device)
    layout = layouts.initialize(run.parallel, device)
    vocabulary = load_vocabulary(run.model.vocabulary, run.model.num_codebooks)
    engine = Engine(run, make_model(run, vocabulary, layout, device), layout, device=device)
    return engine, make_loaders(run, vocabulary, layout, device), Identity(run, vocabulary, None, "unknown")


def synchronize() -> None:
    """Waits for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def running(engine: Engine, batches: list[list[Batch]]) -> float:
    """Seconds a step of steps that nobody waits for."""
    synchronize()
    before = time.perf_counter()
    for step in batches:
        engine.train_step(step, learning_rate=1e-5)
    synchronize()
    return (time.perf_counter() - before) / len(batches)


def measure(arguments: argparse.Namespace, rows: int, variant: str, deadline: float) -> dict[str, Any]:
    """Times one size of one variant."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run = configure(arguments, rows, *variant.split())
    started = time.perf_counter()
    engine, loaders, identity = build(run)
    steps, enqueued, losses = [], [], []
    for step in range(WARM_UP + TIMED):
        if step > WARM_UP + 2 and time.monotonic() > deadline:
            break
        batches = loaders.train.step_batches(step)
        synchronize()
        before = time.perf_counter()
        statistic = engine.train_step(batches, learning_rate=1e-5 * (step + 1))
        enqueued.append(time.perf_counter() - before)
        synchronize()
        steps.append(time.perf_counter() - before)
        losses.append(float(statistic.loss_sums_KQ.sum() / statistic.counts_KQ.sum()))
        if step == 0:
            first = time.perf_counter() - started
        if step == WARM_UP - 1:
            engine.stopwatch.read()
    parts = engine.stopwatch.read()
    timed, after = steps[WARM_UP:], len(steps)
    alone = running(engine, [loaders.train.step_batches(after + step) for step in range(RUNNING)])
    median = statistics.median(timed)
    speed = Speed(run, identity.vocabulary.size, engine.device)
    row = {
        "variant": variant or "-", "rows": rows, "codebooks": arguments.codebooks, "frames": run.frames_per_step, "steps": len(timed),
        "ms": 1000 * median, "ms_least": 1000 * min(timed), "ms_most": 1000 * max(timed),
        "enqueue_ms": 1000 * statistics.median(enqueued[WARM_UP:]), "running_ms": 1000 * alone,
        "frames_per_second": run.frames_per_step / alone, "mfu": speed.mfu(run.frames_per_step / alone),
        "planned_ms": 1000 * step_seconds(run, gpu="H100").total,
        "start_s": first, "first_loss": losses[0], "last_loss": losses[-1],
        **{f"{part}_ms": 1000 * seconds for part, seconds in parts.items()},
    }  # fmt: skip
    if torch.cuda.is_available():
        row |= {"gpu": torch.cuda.get_device_name(), "reserved_gb": torch.cuda.max_memory_reserved() / 1e9}
        row["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    if arguments.save:
        row |= save(arguments, engine, identity)
    loaders.close()
    return row


def save(arguments: argparse.Namespace, engine: Engine, identity: Identity) -> dict[str, float]:
    """Seconds that a step waits for a checkpoint, seconds until it is published, GB, GB/s."""
    writer = CheckpointWriter(arguments.out / "checkpoints", engine, replace(identity), keep=1)
    writer._files.result()  # pinned while the first steps run, in a training
    synchronize()
    before = time.perf_counter()
    writer.save(1, next_row=0)
    host = time.perf_counter() - before
    synchronize()
    stalled = time.perf_counter() - before
    writer.wait()
    whole = time.perf_counter() - before
    size = sum(file.stat().st_size for file in (arguments.out / "checkpoints").rglob("*.safetensors")) / 1e9
    writer.close()
    return {"save_host_s": host, "save_stall_s": stalled, "save_whole_s": whole, "save_gb": size, "save_gb_per_s": size / (whole - stalled)}


def parity(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Three losses of a small model, kernels in the run's precision beside torch in fp32."""
    small = ["model.width=512", "model.num_heads=4", "model.ffn_width=2048", "model.global_layers=4", "model.local_layers=2"]
    found = {}
    for name, more in {"kernels": [], "torch fp32": ["model.kernels=torch", "train.precision=fp32", "parallel.zero_stage=0"]}.items():
        engine, loaders, _ = build(configure(arguments, 1, *small, *more))
        losses = []
        for step in range(3):
            statistic = engine.train_step(loaders.train.step_batches(step), learning_rate=1e-4)
            losses.append(float(statistic.loss_sums_KQ.sum() / statistic.counts_KQ.sum()))
        found[name] = losses
        loaders.close()
    return found


def main() -> None:
    """Measures each size, writing after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", default="paper_1b")
    parser.add_argument("--rows", default="4,8")
    parser.add_argument("--variant", action="append", help="overrides, by spaces, of one row of results for each size")
    parser.add_argument("--codebooks", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=150, help="for all sizes together; what was measured until then is written")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    shards = arguments.out / f"shards-{arguments.codebooks}"
    if not shards.exists():
        width = configure(arguments, 1).model.text_width
        write_random_shards(shards, clips=400, valid_clips=48, codebooks=arguments.codebooks, text_width=width, frames=(150, 750))
    if arguments.parity:
        (arguments.out / "parity.json").write_text(json.dumps(parity(arguments), indent=1))
    found: list[dict[str, Any]] = []
    for rows, variant in itertools.product(map(int, arguments.rows.split(",")), arguments.variant or [""]):
        found.append(measure(arguments, rows, variant, deadline))
        keys = list(dict.fromkeys(key for row in found for key in row))
        with (arguments.out / "steps.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(found)
        table = [f"| {key} | {' | '.join(_show(row.get(key)) for row in found)} |" for key in keys]
        (arguments.out / "steps.md").write_text("\n".join(["| |" + " |" * len(found), "|---|" + "---|" * len(found), *table, ""]))
        sys.stdout.write(json.dumps(found[-1]) + "\n")


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
