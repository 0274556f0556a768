"""The paper's comparison of structures at a size of one's own: each is trained on the same shards, steps and seed, then measured.

Quality is the loss on held-out clips in nats a code, over all and by level: every structure predicts the same codes. The structures without
a local stack get its layers as global ones, so that all have about the same number of parameters. On a GPU, speed is the fastest logged
lap and memory the most that was allocated; on a CPU, whose cores others use too, both are of one forward and backward pass over one batch:
CPU seconds of one thread (the least of five), and the tensors that are kept for the backward pass.

    python tests/structures.py --shards shards --out work/structures --run demo_cpu --steps 200
    python tests/structures.py data.workers=4 --shards shards --out work/structures --run all_tasks_30m --steps 3000 --codebooks 3 8

A run that is finished is not made again; --only makes some now and others later.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import torch

from uniaudio.configs.load import load_config
from uniaudio.configs.model import Structure
from uniaudio.configs.run import RunConfig
from uniaudio.pretrain.data.loader import make_loader
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.model.model import MultiScaleTransformer

# The paper's table (TTS, about 1 B parameters): (structure, codebooks) -> MOS, MCD, GB, s/step.
PAPER = {
    ("flattening", 3): (3.80, 6.56, 36.7, 1.63),
    ("parallel", 3): (3.14, 7.89, 13.6, 0.53),
    ("delay", 3): (3.48, 6.95, 13.7, 0.59),
    ("coarse_first", 8): (3.48, 7.37, 18.7, 0.58),
    ("multi_scale", 3): (3.77, 6.52, 19.4, 0.73),
    ("multi_scale", 8): (3.84, 6.27, 24.0, 1.10),
}


def structure_overrides(run: RunConfig, structure: Structure, codebooks: int) -> list[str]:
    """What makes a run of this structure out of one of multi_scale."""
    model = run.model
    made = model.model_copy(update={"structure": structure, "num_codebooks": codebooks})
    positions = run.data.frames_per_row * made.steps_per_frame + 3 * (codebooks - 1)
    overrides = [f"model.structure={structure}", f"model.num_codebooks={codebooks}", f"model.max_positions={positions}"]
    if structure != "multi_scale":
        overrides += ["model.local_layers=0", f"model.global_layers={model.global_layers + model.local_layers}"]
    return overrides


def step_cost(run: RunConfig) -> tuple[float, float]:
    """(CPU seconds of a forward and backward pass over the run's first batch, GB kept for the backward pass)."""
    torch.set_num_threads(1)
    vocabulary = load_vocabulary(run.model.vocabulary, run.model.num_codebooks)
    loader = make_loader(run.data, run.model, vocabulary)
    [batch] = loader.step_batches(0)
    loader.close()
    model = MultiScaleTransformer(run.model, vocabulary, num_tasks=len(run.data.tasks))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds = []
    for attempt in range(6):
        began = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor) if attempt == 0 else nullcontext():
            sums, counts = model(batch.as_tuple())
        (sums.sum() / counts.sum()).backward()
        seconds.append(time.process_time() - began)
    return min(seconds[1:]), sum(kept.values()) / 1e9


def train(arguments: Sequence[str]) -> None:
    """Runs the command to its end. SystemExit where it failed."""
    if code := subprocess.run([sys.executable, "-m", "uniaudio", "train", *arguments], check=False).returncode:
        sys.exit(f"uniaudio train {' '.join(arguments)}: exit code {code}")


def measure(folder: Path, run: RunConfig, rows: int) -> dict[str, Any]:
    """The figures of a finished run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gpu = [line["system/gpu_memory_gb"] for line in lines if "system/gpu_memory_gb" in line]
    lap = min(line["seconds_per_step"] for line in lines if "seconds_per_step" in line)
    seconds, memory = (lap, max(gpu)) if gpu else step_cost(run)
    command = [sys.executable, "-m", "uniaudio", "evaluate", str(folder), "--clips", "0", "--rows", str(rows), "--json"]
    tasks = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)["tasks"]
    parameters = sum(math.prod(entry["shape"]) for entry in json.loads(newest_manifest(folder).read_text())["parameters"].values())
    held_out = next(line for line in reversed(lines) if "valid/loss" in line)
    return {
        "parameters": parameters,
        "loss": held_out["valid/loss"],
        "unigram": held_out["valid/unigram"],
        "by_level": [held_out[key] for key in sorted(held_out) if key.startswith("valid/loss/level/")],
        "tasks": {name: {key: found[key] for key in ("loss", "accuracy", "accuracy_by_level")} for name, found in tasks.items()},
        "seconds_per_step": seconds,
        "memory_gb": memory,
    }


def newest_manifest(folder: Path) -> Path:
    """Of a run's newest checkpoint."""
    return sorted(folder.glob("checkpoints/step-*/manifest.json"))[-1]


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row a structure; the paper's figures beside."""
    levels = max(len(found["by_level"]) for found in results.values())
    tasks = list(next(iter(results.values()))["tasks"])
    head = ["structure", "n_q", "parameters, M", "held-out loss, nats a code", *(f"level {q + 1}" for q in range(levels))]
    head += [*(f"{task}: accuracy, %" for task in tasks), "memory, GB", "s/step", "paper: MOS, MCD, GB, s/step"]
    rows = [head, ["---"] * len(head)]
    for name, found in results.items():
        structure, _, codebooks = name.rpartition("-")
        row = [
            structure,
            codebooks,
            f"{found['parameters'] / 1e6:.2f}",
            f"{found['loss']:.4f}",
            *(f"{loss:.3f}" for loss in found["by_level"]),
        ]
        row += ["-"] * (levels - len(found["by_level"]))
        row += [f"{100 * found['tasks'][task]['accuracy']['mean']:.2f}" if task in found["tasks"] else "-" for task in tasks]
        paper = PAPER.get((structure, int(codebooks)))
        rows.append([*row, f"{found['memory_gb']:.3f}", f"{found['seconds_per_step']:.3f}", ", ".join(map(str, paper)) if paper else "-"])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    """Trains and measures what is not there yet; prints the table of all that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", default="demo_cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=32, help="held-out rows for the accuracies")
    parser.add_argument("--codebooks", type=int, nargs="+", default=[3])
    parser.add_argument("--only", nargs="+", choices=get_args(Structure), default=get_args(Structure))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    common = [f"data.shards={arguments.shards}", f"train.steps={arguments.steps}", "parallel.tensor_parallel_size=1", *arguments.overrides]
    for codebooks in arguments.codebooks:
        for structure in arguments.only:
            folder = arguments.out / f"{structure}-{codebooks}"
            if (folder / "result.json").exists():
                continue
            run = load_config(RunConfig, arguments.run, folder="runs", overrides=common)
            overrides = [*common, *structure_overrides(run, structure, codebooks), f"train.output_dir={folder}"]
            train([arguments.run, *overrides])
            made = load_config(RunConfig, arguments.run, folder="runs", overrides=overrides)
            (folder / "result.json").write_text(json.dumps(measure(folder, made, arguments.rows), indent=1))
    results = {path.parent.name: json.loads(path.read_text()) for path in sorted(arguments.out.glob("*/result.json"))}
    text = table(results)
    (arguments.out / "structures.md").write_text(text)
    unigram = next(iter(results.values()))["unigram"]
    sys.stdout.write(f"{text}\nUnigram entropy of the same codes (n_q of the first row): {unigram:.4f} nats.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
