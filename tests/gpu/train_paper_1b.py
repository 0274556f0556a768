"""`uniaudio train paper_1b` on one GPU over random shards, and a report of it: OUT/report.md, OUT/train.log, OUT/metrics.jsonl.

Random codes (Zipf's frequencies), but the real way: shards, plan, packing, DeepSpeed, MLflow, checkpoint. So it says whether everything
works and how fast, nothing about audio. Uses the python that runs it; no network.

    python tests/gpu/train_paper_1b.py --out work/paper_1b_h100 --steps 50 [OVERRIDES]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from random_shards import write_random_shards

PACKAGES = ("torch", "triton", "deepspeed", "megatron-core", "mlflow", "numpy")


def command(arguments: argparse.Namespace, shards: Path) -> list[str]:
    """The command line of the training."""
    settings = {
        "data.shards": shards,
        "parallel.data_parallel_size": 1,
        "train.output_dir": arguments.out / "run",
        "train.steps": arguments.steps,
        "train.log_every": 5,
        "train.evaluate_batches": 4,
        "train.save_every": arguments.steps,
        "optim.warmup_steps": 20,
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "uniaudio", "train", "paper_1b", *given, *arguments.overrides]


def gpu() -> str:
    """Name, memory and driver of the GPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def report(arguments: argparse.Namespace, line: list[str], seconds: float) -> str:
    """What happened, as Markdown."""
    rows = [json.loads(text) for text in (arguments.out / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    timed = [row for row in steps if "mfu" in row][2:]  # the first laps compile kernels
    held_out = [row for row in rows if "valid/loss" in row][-1]
    shown = [str(part) for part in ["uniaudio", *line[3:]]]
    picked = [row for row in steps if row["step"] == 1 or "mfu" in row]
    return "\n".join(
        [
            f"# paper_1b, {arguments.steps} steps, one GPU",
            "",
            f"- GPU: {gpu()}",
            f"- Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
            f"- Commit: {os.environ.get('UNIAUDIO_GIT_COMMIT', 'see the MLflow run')}",
            f"- Command: `{' '.join(shown)}`",
            f"- Wall time {seconds:.0f} s from start to exit",
            f"- Median after the first laps: {statistics.median(row['frames_per_second'] for row in timed):,.0f} frames/s, "
            f"MFU {100 * statistics.median(row['mfu'] for row in timed):.1f} %",
            f"- Held-out loss {held_out['valid/loss']:.3f}, unigram entropy of the same codes {held_out['valid/unigram']:.3f}",
            "",
            "| step | loss | gradient norm | frames/s | MFU |",
            "|---|---|---|---|---|",
            *[
                f"| {row['step']} | {row['loss']:.4f} | {row['gradient_norm']:.3f} | {row.get('frames_per_second', float('nan')):,.0f} "
                f"| {100 * row.get('mfu', float('nan')):.1f} % |"
                for row in picked
            ],
            "",
        ]
    )


def main() -> int:
    """Makes shards where there are none, trains, writes the report; returns the training's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("overrides", nargs="*", help="more overrides of the config, for example data.rows_per_micro_batch=8")
    arguments = parser.parse_args()
    shards = arguments.out / "shards"
    if not shards.exists():
        write_random_shards(shards, clips=1500, valid_clips=120, codebooks=3, text_width=768, frames=(150, 750))
    line = [str(part) for part in command(arguments, shards)]
    start = time.time()
    with (arguments.out / "train.log").open("w") as log:
        training = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert training.stdout is not None
        for text in training.stdout:
            log.write(text)
            sys.stdout.write(text)
    code = training.wait()
    if code == 0:
        (arguments.out / "report.md").write_text(report(arguments, line, time.time() - start))
    return code


if __name__ == "__main__":
    sys.exit(main())
