"""The one table at the end of the demo: clips by class, drops by reason, farm speed, losses beside the unigram entropy, wavs, MLflow."""

import json
from pathlib import Path

from rich.table import Column, Table


def demo_table(root: Path, seconds: dict[str, float], audio: list[tuple[str, str]]) -> Table:
    """What lies below `root` after the demo, with the `seconds` of each step and the audio made: (what, path and level)."""
    # Folded, not cut: the last line is a command to be copied.
    table = Table("what", Column("result", overflow="fold"), title="uniaudio demo", title_justify="left")
    for what, result in [*_farm_lines(root / "shards"), *_training_lines(root / "run"), *audio]:
        table.add_row(what, result)
    table.add_row("seconds", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    table.add_row("MLflow", f".venv/bin/mlflow ui --backend-store-uri sqlite:///{(root / 'mlflow.db').resolve()}")
    return table


def _farm_lines(shards: Path) -> list[tuple[str, str]]:
    farm = json.loads((shards / "farm.json").read_text(encoding="utf-8"))
    totals, work = farm["totals"], farm["last_work"]
    classes = [
        f"{kind} {totals['clips_by_kind'][kind]} clips, {seconds / 60:.1f} min"
        for kind, seconds in sorted(totals["seconds_by_kind"].items())
    ]
    drops = [f"{reason} {count}" for reason, count in totals["dropped_by_reason"].items()]
    return [
        ("clips", "; ".join(classes)),
        ("dropped clips", ", ".join(drops) or "none"),
        ("farm", f"{work['times_real_time']:.1f} x real time, {work['workers']} workers"),
    ]


def _training_lines(run: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = next(line for line in reversed(lines) if "unigram" in line)
    held_out = next((line for line in reversed(lines) if "valid/loss" in line), None)
    rows = [
        (
            "training loss",
            f"{trained['loss']:.3f} nats a code after {trained['step']} steps (unigram entropy of the same codes {trained['unigram']:.3f})",
        ),
        ("training speed", f"{trained['frames_per_second']:.0f} frames/s"),
    ]
    if held_out is not None:
        loss, unigram = held_out["valid/loss"], held_out["valid/unigram"]
        verdict = "below it" if loss < unigram else "NOT below it"
        rows.insert(1, ("held-out loss", f"{loss:.3f} nats a code (unigram entropy of the same codes {unigram:.3f}: {verdict})"))
    return rows
