"""From `uniaudio submit` to the first training step, broken down, on a Slurm of this machine; for an idle one. Root, and Slurm's packages.

    python tests/integration/time_to_first_step.py [--preflight]

A tiny training runs on two nodes twice: the first time fills the page cache, the second is told. Every moment is that of a file which the
job writes on its way, seen within 20 ms.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_shards import write_random_shards
from slurm_cluster import SlurmCluster

MODEL = {"width": 32, "num_heads": 2, "ffn_width": 64, "global_layers": 2, "local_layers": 1, "max_positions": 128, "text_width": 32}
SECONDS = 600


def moment(what: Callable[[], bool]) -> float:
    """When `what()` first held."""
    deadline = time.monotonic() + SECONDS
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.02)
    return time.monotonic()


def configs(folder: Path, shards: Path, *, preflight: bool) -> list[str]:
    """Words of `submit` for a run and a cluster of two nodes."""
    run = {
        "model": {**MODEL, "kernels": "torch"},
        "data": {"shards": str(shards), "tasks": ["tts", "sound"], "frames_per_row": 128, "rows_per_micro_batch": 2},
        "parallel": {"data_parallel_size": 2},
        "train": {"output_dir": str(folder / "out"), "steps": 3, "device": "cpu", "log_every": 1, "threads": 1},
    }
    cluster = {
        "kind": "slurm",
        "job_dir": str(folder / "jobs"),
        "resources": {"nodes": 2},
        "slurm": {"master_address": "127.0.0.1"},
        "preflight": {"enabled": preflight, "free_disk_gb": 0.1, "slow_fraction": 0.01},
    }
    (folder / "run.yaml").write_text(json.dumps(run))
    (folder / "cluster.yaml").write_text(json.dumps(cluster))
    return ["submit", str(folder / "run.yaml"), "--cluster", str(folder / "cluster.yaml")]


def measure(slurm: SlurmCluster, folder: Path, shards: Path, *, preflight: bool) -> list[tuple[str, float]]:
    """(what, seconds) in order."""
    folder.mkdir()
    job, out = folder / "jobs" / "train-run-1", folder / "out"
    words = configs(folder, shards, preflight=preflight)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "uniaudio", *words], env=slurm.environment, cwd=folder, check=True, capture_output=True)
    marks = [("`submit`: Python, validation, the job's folder, sbatch", time.monotonic())]
    marks.append(("Slurm: until the script runs", moment((job / "output.log").exists)))
    if preflight:
        marks.append(("preflight: every node has looked at itself", moment(lambda: len(list((job / "preflight-0").glob("n*.json"))) == 2)))
        marks.append(("preflight: speeds, and the verdict", moment((job / "preflight-0" / "bad_nodes").exists)))
    marks.append(("srun, Python, the config", moment((out / ".lock").exists)))
    marks.append(("imports, rendezvous, shards, model, engine", moment((out / "config.yaml").exists)))
    metrics = out / "metrics.jsonl"
    marks.append(("MLflow, and the first step", moment(lambda: metrics.exists() and '"loss"' in metrics.read_text())))
    slurm.wait_for(lambda: not slurm.run("squeue", "--noheader").strip(), seconds=SECONDS)
    before = [started, *(when for _, when in marks)]
    return [(what, when - then) for (what, when), then in zip(marks, before)]


@click.command()
@click.option("--preflight", is_flag=True, help="With the look at every node that a job of several nodes has by default.")
def main(preflight: bool) -> None:
    """Prints the table."""
    folder = Path(tempfile.mkdtemp(prefix="first-step-"))
    sizes = {"clips": 200, "valid_clips": 12, "codebooks": 3, "text_width": 32, "frames": (20, 60)}
    shards = write_random_shards(folder / "shards", **sizes)
    slurm = SlurmCluster(folder / "slurm", nodes=2)
    try:
        slurm.start()
        for name in ("first", "second"):
            rows = measure(slurm, folder / name, shards, preflight=preflight)
    finally:
        slurm.stop()
        shutil.rmtree(folder)
    click.echo("| from `submit` to the first step | seconds |\n|---|---|")
    for what, seconds in [*rows, ("in all", sum(seconds for _, seconds in rows))]:
        click.echo(f"| {what} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
