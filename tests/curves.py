"""Draws the losses of a training, all tasks together, by task and by level, from its metrics.jsonl; and keeps every n-th line of it.

    python tests/curves.py RUN/metrics.jsonl OUT/curves.png [--every 20 --log OUT/metrics.jsonl]

Thin lines: training, means of 25 steps. Dots: held-out. Dashed: the unigram entropy of the held-out codes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

SMOOTHED = 25  # steps


def draw(lines: list[dict[str, Any]], prefix: str, axes: Axes) -> None:
    """One curve for each name below `prefix` (an empty one: the loss of everything)."""
    names = sorted({key for line in lines for key in line if key.startswith(prefix)}) if prefix else ["loss"]
    for number, name in enumerate(names):
        color = f"C{number % 10}"
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, losses = map(np.array, zip(*points))
        width = min(SMOOTHED, len(losses))
        axes.plot(
            steps[width - 1 :], np.convolve(losses, np.ones(width) / width, "valid"), color=color, linewidth=0.8, label=name.split("/")[-1]
        )
        held = [(line["step"], line[f"valid/{name}"]) for line in lines if f"valid/{name}" in line]
        if held:
            axes.plot(*zip(*held), "o", color=color, markersize=4)
        entropy = [line[key] for line in lines if (key := f"valid/{name}".replace("/loss", "/unigram")) in line]
        if entropy:
            axes.axhline(entropy[-1], color=color, linestyle="--", linewidth=0.6)
    axes.set(xlabel="step", ylabel="nats a code")
    axes.legend(fontsize=7, ncol=2)


def main() -> None:
    """Three pictures side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.metrics.read_text().splitlines()]
    figure, axes = plt.subplots(1, 3, figsize=(18, 5))
    for place, (prefix, title) in zip(axes, (("", "all"), ("loss/task/", "by task"), ("loss/level/", "by level of the codec"))):
        draw(lines, prefix, place)
        place.set_title(title)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=110)
    if arguments.log:
        kept = [line for line in lines if "valid/loss" in line or line["step"] % arguments.every == 0]
        arguments.log.write_text("".join(json.dumps({k: round(v, 5) for k, v in line.items()}) + "\n" for line in kept))


if __name__ == "__main__":
    main()
