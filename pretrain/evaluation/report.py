"""Results as a table in the paper's layout, as JSON, as metrics, and as wavs to hear."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.atomic import publish_bytes
from uniaudio.pretrain.evaluation.evaluate import TaskResult
from uniaudio.pretrain.evaluation.scores import BETTER
from uniaudio.pretrain.evaluation.statistics import Interval
from uniaudio.tokenize_farm.audio import save_wav

# As the paper reports them (arXiv 2310.00704, tables 2 and 3; to be checked against it), on other test sets, by other recognisers, speaker
# models, embeddings and classifiers: Frechet distances of other embeddings have another scale. Listeners' scores have no counterpart here.
PAPER: dict[str, dict[str, float]] = {
    "tts": {"wer": 0.020, "sim": 0.71},
    "vc": {"wer": 0.048, "sim": 0.87},
    "sound": {"frechet": 3.12, "kl": 2.6},
    "music": {"frechet": 3.65, "kl": 1.87},
    "a_edit": {"frechet": 17.78, "kl": 0.77},
    "sd": {"pesq": 2.13, "dnsmos": 3.51},
    "s_edit": {"mcd": 5.12},
}
OF_OTHER_SCALE = ("frechet",)
HEARD_CLIPS = 4


def markdown(results: Sequence[TaskResult], about: Mapping[str, str]) -> str:
    """A table of likelihoods, then one of sounds a task; the paper's figures beside."""
    lines = [f"# Evaluation of {about['checkpoint']}", ""]
    lines += [f"- {key}: {value}" for key, value in about.items() if key != "checkpoint"]
    levels = max(len(result.likelihood.loss_by_level) for result in results)
    columns = ["task", "documents", "loss, nats a code", "unigram entropy", "accuracy", *(f"loss, level {q + 1}" for q in range(levels))]
    lines += ["", "Mean and 95 % bootstrap interval over clips.", "", *_table(columns, map(_likelihood_row, results))]
    for result in results:
        if not result.rows:
            continue
        if not (measures := list(result.rows["model"])):
            continue
        head = ["row", *(f"{name} ({BETTER[name]} is better)" for name in measures)]
        body = [[row, *(str(found[name]) if name in found else "" for name in measures)] for row, found in result.rows.items()]
        if paper := PAPER.get(result.task):
            body.append(["paper, as reported", *(_reported(paper, name) for name in measures)])
        clips = len(result.audio)
        lines += ["", f"## {result.task}: {clips} generated clips", "", *_table(head, body)]
    return "\n".join(lines) + "\n"


def _reported(paper: Mapping[str, float], name: str) -> str:
    other = " (other embeddings)" if name in OF_OTHER_SCALE else ""
    return f"{paper[name]:g}{other}" if name in paper else ""


def _likelihood_row(result: TaskResult) -> list[str]:
    found = result.likelihood
    levels = [f"{loss:.3f}" for loss in found.loss_by_level]
    return [result.task, str(found.documents), str(found.loss), f"{found.unigram:.3f}", str(found.accuracy), *levels]


def _table(head: Sequence[str], body: Any) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def as_json(results: Sequence[TaskResult], about: Mapping[str, str]) -> dict[str, Any]:
    """Every figure; NaN as None."""
    tasks = {}
    for result in results:
        found = result.likelihood
        tasks[result.task] = {
            "documents": found.documents,
            "loss": _numbers(found.loss),
            "accuracy": _numbers(found.accuracy),
            "unigram": found.unigram,
            "loss_by_level": list(found.loss_by_level),
            "accuracy_by_level": list(found.accuracy_by_level),
            "rows": {row: {name: _numbers(value) for name, value in values.items()} for row, values in result.rows.items()},
        }
    return {**about, "tasks": tasks}


def _numbers(value: Interval) -> dict[str, float | int | None]:
    plain = {
        name: None if math.isnan(number) else number for name, number in (("mean", value.mean), ("low", value.low), ("high", value.high))
    }
    return {**plain, "count": value.count}


def metrics(results: Sequence[TaskResult]) -> dict[str, float]:
    """`TASK/loss`, `TASK/accuracy`, `TASK/ROW/MEASURE` for MLflow."""
    values: dict[str, float] = {}
    for result in results:
        values |= {f"{result.task}/loss": result.likelihood.loss.mean, f"{result.task}/unigram": result.likelihood.unigram}
        values[f"{result.task}/accuracy"] = result.likelihood.accuracy.mean
        values |= {f"{result.task}/{row}/{name}": value.mean for row, found in result.rows.items() for name, value in found.items()}
    return {key: value for key, value in values.items() if math.isfinite(value)}


def write_codes(results: Sequence[TaskResult], folder: Path) -> None:
    """`TASK.npz`: the model's codes (T, Q) of every generated clip, by the clip's key. Measured elsewhere with `--generated folder`."""
    for result in results:
        if result.codes:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **result.codes)
            publish_bytes(folder / f"{result.task}.npz", buffer.getvalue())


def write_audio(results: Sequence[TaskResult], folder: Path) -> list[Path]:
    """`TASK/CLIP.ROW.wav` of the first clips of each task."""
    written = []
    for result in results:
        for clip, rows in list(result.audio.items())[:HEARD_CLIPS]:
            for row, samples in rows.items():
                if len(samples):
                    path = folder / result.task / f"{re.sub('[^A-Za-z0-9_-]+', '-', clip)}.{row}.wav"
                    save_wav(path, samples)
                    written.append(path)
    return written
