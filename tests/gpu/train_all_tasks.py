"""A small model of all eleven tasks on one GPU: train for so many seconds, export, evaluate every task: OUT/run, OUT/model, OUT/evaluation.

SHARDS is what `uniaudio tokenize full_corpus` made. The training stops by SIGTERM and saves; the same command again goes on from there.
Uses the python that runs it; no network. A host that lacks a measure's model measures what it can be told to (`--measures`); by default it
generates alone, and the codes are measured where the models are:

    python tests/gpu/train_all_tasks.py --shards shards --out work/all_tasks --seconds 540 --clips 24 [OVERRIDES]
    uniaudio evaluate work/all_tasks/model --shards shards --clips 24 --generated work/all_tasks/evaluation/codes
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SAVED = 75  # exit code of a training that was asked to stop, and saved


def train(arguments: argparse.Namespace) -> int:
    """Trains until the steps of the config or the seconds are over; the exit code."""
    given = [f"data.shards=[{','.join(map(str, arguments.shards))}]", f"train.output_dir={arguments.out / 'run'}", *arguments.overrides]
    with (arguments.out / "train.log").open("a") as log:
        command = [sys.executable, "-m", "uniaudio", "train", "all_tasks_30m", *given]
        training = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            return training.wait(timeout=arguments.seconds)
        except subprocess.TimeoutExpired:
            training.send_signal(signal.SIGTERM)
            return training.wait()


def uniaudio(*words: str) -> int:
    """The exit code of a command, its output passed on."""
    return subprocess.run([sys.executable, "-m", "uniaudio", *words], check=False).returncode


def main() -> int:
    """Trains, exports, evaluates; the first exit code that is not good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, action="append", required=True, help="may be repeated: one a dataset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540.0, help="of training, start included")
    parser.add_argument("--clips", type=int, default=24, help="generated a task by the evaluation; 0: its likelihood alone")
    parser.add_argument("--measures", default="none", help="as of `uniaudio evaluate`; empty: all of them")
    parser.add_argument("overrides", nargs="*", help="overrides of the config, for example data.rows_per_micro_batch=8")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    code = train(arguments)
    sys.stdout.write((arguments.out / "train.log").read_text()[-3000:])
    sys.stdout.write(f"training: exit code {code} after {time.time() - started:.0f} s\n")
    if code not in (0, SAVED):
        return code
    run, out = str(arguments.out / "run"), str(arguments.out / "evaluation")
    shutil.rmtree(arguments.out / "model", ignore_errors=True)  # of the command before this one
    code = uniaudio("checkpoint", "export", "--checkpoint", run, "--out", str(arguments.out / "model"), "--precision", "bf16")
    measured = ["--measures", arguments.measures] if arguments.measures else []
    return code or uniaudio("evaluate", run, "--out", out, "--clips", str(arguments.clips), *measured)


if __name__ == "__main__":
    sys.exit(main())
