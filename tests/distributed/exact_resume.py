"""kill -9 at 20 random steps of a run of 200: losses, norms, rates and rows of the data must be bit for bit those of the run left alone.

    python tests/distributed/exact_resume.py OUT.md [--kills 20] [--work FOLDER]

Each try is a real process that dies by SIGKILL, while it trains or while its checkpoint is being written; the next one resumes by itself.
All are forked from one that has imported everything, so 20 starts take minutes on a busy machine.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from random_shards import write_random_shards
from ranks import _context

STEPS, SAVE_EVERY = 200, 9
EXACT = ("loss", "gradient_norm", "learning_rate", "data/row")


def config(folder: Path, name: str) -> dict[str, Any]:
    """A small model over random shards, six tasks, two loader processes, a checkpoint every few steps."""
    model = {"width": 32, "num_heads": 2, "ffn_width": 64, "global_layers": 2, "local_layers": 1, "max_positions": 256, "text_width": 16}
    return {
        "model": {**model, "kernels": "torch"},
        "data": {
            "shards": str(folder / "shards"), "tasks": ["tts", "vc", "se", "svs", "sound", "music"], "frames_per_row": 128,
            "rows_per_micro_batch": 1, "prompt_seconds": 0.3,
        },
        "optim": {"lr": 0.01, "warmup_steps": 20},
        "train": {
            "output_dir": str(folder / name), "steps": STEPS, "device": "cpu", "log_every": 1, "save_every": SAVE_EVERY,
            "evaluate_batches": 1, "threads": 1,
        },
    }  # fmt: skip


def rank(settings: dict[str, Any]) -> None:
    """One training process of a world of one."""
    os.environ["UNIAUDIO_LOG_LEVEL"] = "ERROR"
    import torch

    from uniaudio.configs.run import RunConfig
    from uniaudio.pretrain.train import train

    torch.set_num_threads(1)
    os._exit(train(RunConfig.model_validate(settings)))


def lines(folder: Path, name: str) -> list[dict[str, float]]:
    """The steps of metrics.jsonl; a torn last line is left out."""
    path = folder / name / "metrics.jsonl"
    whole = [text for text in path.read_text().splitlines(keepends=True) if text.endswith("\n")] if path.exists() else []
    return [record for record in map(json.loads, whole) if "loss" in record]


def run_until(process: Any, folder: Path, name: str, step: int, delay: float) -> int:
    """Kills the process a moment after it has written this step; returns the last step that it wrote."""
    deadline = time.monotonic() + 240
    while process.is_alive() and time.monotonic() < deadline:
        if (done := lines(folder, name)) and done[-1]["step"] >= step:
            break
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return int(lines(folder, name)[-1]["step"])


def main() -> int:
    """Runs both, compares, writes OUT; 0 where every number is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    folder = chosen.work or Path(mkdtemp(prefix="exact-resume-"))
    write_random_shards(folder / "shards", clips=120, valid_clips=12, codebooks=3, text_width=16, frames=(30, 90), clips_per_shard=30)
    context, dice = _context(), random.Random(chosen.seed)

    def start(name: str) -> multiprocessing.Process:
        process = context.Process(target=rank, args=(config(folder, name),))
        process.start()
        return process

    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0
    kills = []
    for step in sorted(dice.sample(range(2, STEPS - 1), chosen.kills)):
        killed = run_until(start("killed"), folder, "killed", step, dice.uniform(0, 0.2))
        saved = sorted((folder / "killed" / "checkpoints").glob("step-*/manifest.json"))
        kills.append((killed, saved[-1].parent.name if saved else "the beginning"))
    last = start("killed")
    last.join()
    assert last.exitcode == 0
    truth, ours = lines(folder, "whole"), lines(folder, "killed")
    same = [[record[key] for key in EXACT] for record in truth] == [[record[key] for key in EXACT] for record in ours]
    chosen.out.write_text(report(kills, truth, ours, same))
    return 0 if same else 1


def report(kills: list[tuple[int, str]], truth: list[dict[str, float]], ours: list[dict[str, float]], same: bool) -> str:
    """What was done and found, as Markdown."""
    rows = [f"| {number} | {step} | {resumed} |" for number, (step, resumed) in enumerate(kills, 1)]
    picked = [
        f"| {int(a['step'])} | {a['loss']!r} | {b['loss']!r} | {int(b['data/row'])} |"
        for a, b in zip(truth, ours)
        if a["step"] in (1, 50, 100, 150, STEPS)
    ]
    verdict = "bit for bit the same" if same else "NOT the same"
    return "\n".join(
        [
            f"# {len(kills)} times kill -9 in {STEPS} steps",
            "",
            f"Python {platform.python_version()}, torch {version('torch')}, deepspeed {version('deepspeed')}, CPU; "
            "`python tests/distributed/exact_resume.py`.",
            "",
            f"{', '.join(EXACT)} of all {len(ours)} steps: **{verdict}** as in the run left alone.",
            "",
            "| kill | after step | resumed from |",
            "|---|---|---|",
            *rows,
            "",
            "| step | loss, left alone | loss, killed | row of the data |",
            "|---|---|---|---|",
            *picked,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
