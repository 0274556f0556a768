"""Every layout of some GPUs beside one GPU: the same losses, and what of one GPU's speed each of them keeps.

    python3 tests/gpu/layouts.py --out OUT --gpus 4 --seconds 500 [--only tp2_dp2,pp2_dp2] [--config paper_1b] [OVERRIDES]

Each layout is a `uniaudio train` of its own over random shards, with the same rows a step, so the losses of all must agree (bf16: 2 %).
Writes OUT/layouts.csv after each. Without a GPU it runs with a small config of fp32 on the CPU: then it says that the script works.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from random_shards import write_random_shards

# tensor, pipeline, data, ZeRO stage. ROWS x MICRO_BATCHES rows a step in all; a micro-batch has ROWS for each tensor-parallel rank, so that
# every card has as many tokens to work on as one alone would (docs/tensor_parallel.md).
LAYOUTS = {
    "one": (1, 1, 1, 1),
    "dp2": (1, 1, 2, 1),
    "tp2": (2, 1, 1, 1),
    "pp2": (1, 2, 1, 1),
    "dp4": (1, 1, 4, 1),
    "tp2_dp2": (2, 1, 2, 1),
    "pp2_dp2": (1, 2, 2, 1),
    "tp2_pp2": (2, 2, 1, 1),
    "zero2_dp4": (1, 1, 4, 2),
    "zero3_dp4": (1, 1, 4, 3),
}
ROWS, MICRO_BATCHES = 4, 8
PARTS = ("seconds_per_step", *(f"seconds/{part}" for part in ("forward", "backward", "pipeline", "communication", "optimizer")))


def train(arguments: argparse.Namespace, name: str, left: float) -> list[dict[str, Any]]:
    """The lines of the layout's metrics; empty where it failed or took too long."""
    tensor, pipeline, data, zero = LAYOUTS[name]
    settings = {
        "data.shards": arguments.out / "shards", "data.rows_per_micro_batch": ROWS * tensor,
        "optim.gradient_accumulation": MICRO_BATCHES // (data * tensor),
        "parallel.tensor_parallel_size": tensor, "parallel.pipeline_parallel_size": pipeline, "parallel.data_parallel_size": data,
        "parallel.zero_stage": zero, "train.steps": arguments.steps, "train.log_every": 3, "train.save_every": 10_000,
        "train.evaluate_batches": 1, "train.output_dir": arguments.out / name, "optim.warmup_steps": 10,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "uniaudio", "train", arguments.config, *words, *arguments.overrides]
    with (arguments.out / f"{name}.log").open("w") as log:
        environment = {**os.environ, "NCCL_NVLS_ENABLE": "0", "PYTHONSAFEPATH": os.environ.get("PYTHONSAFEPATH", "")}
        try:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=left, check=False, env=environment)
        except subprocess.TimeoutExpired:
            log.write("\nout of time\n")
    path = arguments.out / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def row(name: str, lines: list[dict[str, Any]], one: dict[str, Any] | None) -> dict[str, Any]:
    """One layout's result."""
    tensor, pipeline, data, zero = LAYOUTS[name]
    gpus = tensor * pipeline * data
    losses = [line["loss"] for line in lines if "loss" in line]
    laps = [line for line in lines if "frames_per_second" in line][2:]
    if not laps:
        return {"layout": name, "gpus": gpus, "zero": zero, "verdict": "failed"}
    speed = statistics.median(line["frames_per_second"] for line in laps) / gpus
    found = {
        "layout": name, "gpus": gpus, "zero": zero, "frames_per_second_a_gpu": speed,
        "mfu": statistics.median(line["mfu"] for line in laps),
        **{part: statistics.median(line.get(part, 0.0) for line in laps) for part in PARTS},
        "gpu_gb": max(line.get("system/gpu_memory_gb", 0.0) for line in laps), "losses": losses[:12],
    }  # fmt: skip
    if one is None or "losses" not in one:
        return found | {"verdict": "reference"}
    worst = max(abs(ours - truth) / truth for ours, truth in zip(found["losses"], one["losses"]))
    bubble = (pipeline - 1) / (MICRO_BATCHES // (data * tensor) + pipeline - 1)
    share = speed / one["frames_per_second_a_gpu"]
    return found | {
        "of_one": share, "of_one_without_bubble": share / (1 - bubble), "worst_loss_difference": worst,
        "verdict": "same" if worst < 0.02 else "NOT the same",
    }  # fmt: skip


def main() -> int:
    """Runs the layouts that fit; 0 where all agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--only", default="")
    parser.add_argument("--config", default="paper_1b")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.out / "shards").exists():
        text_width = next((int(word.split("=")[1]) for word in arguments.overrides if word.startswith("model.text_width=")), 768)
        write_random_shards(arguments.out / "shards", clips=600, valid_clips=48, codebooks=3, text_width=text_width, frames=(150, 750))
    deadline, found = time.monotonic() + arguments.seconds, []
    chosen = [name for name, (tensor, pipeline, data, _) in LAYOUTS.items() if tensor * pipeline * data in (1, arguments.gpus)]
    for name in ["one", *arguments.only.split(",")] if arguments.only else chosen:
        if (left := deadline - time.monotonic()) < 30:
            break
        found.append(row(name, train(arguments, name, left), found[0] if found else None))
        keys = list(dict.fromkeys(key for line in found for key in line))
        with (arguments.out / "layouts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(found)
        sys.stdout.write(json.dumps(found[-1]) + "\n")
    return int(any(line["verdict"] not in ("same", "reference") for line in found))


if __name__ == "__main__":
    sys.exit(main())
