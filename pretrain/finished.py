"""Has a training nothing left to do? Told from its output folder in milliseconds, before torch and the like are imported."""

import json
from pathlib import Path
from typing import Any

from uniaudio.atomic import publish_bytes
from uniaudio.configs.run import RunConfig

_RECORD = "finished.json"


def record_finished(run: RunConfig, step: int) -> None:
    """Notes that `step` was reached, evaluated and saved, and that MLflow was told."""
    publish_bytes(Path(run.train.output_dir) / _RECORD, json.dumps({"step": step}).encode())


def finished_at(run: RunConfig) -> Path | None:
    """The checkpoint of a finished training that `run` would only load and leave; None where there is work, or anything to complain of.

    That is: `record_finished` was called at train.steps or later, and the newest checkpoint is of the same model and tasks and has all its
    files in full length. Their bytes are verified by whoever loads them.
    """
    output_dir = Path(run.train.output_dir)
    record = _read_json(output_dir / _RECORD)
    if not run.train.resume or record is None or _step(record) < run.train.steps:
        return None
    manifests = sorted((output_dir / "checkpoints").glob("step-*[0-9]/manifest.json"))
    manifest = _read_json(manifests[-1]) if manifests else None
    if manifest is None or _step(manifest) < run.train.steps:
        return None
    now, before = run.model_dump(mode="json"), manifest.get("config", {})
    same = before.get("model") == now["model"] and before.get("data", {}).get("tasks") == now["data"]["tasks"]
    folder = manifests[-1].parent
    sizes = {folder / name: entry.get("bytes") for name, entry in manifest.get("files", {}).items()}
    whole = all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())
    return folder if same and whole else None


def _step(content: dict[str, Any]) -> int:
    step = content.get("step")
    return step if isinstance(step, int) else 0


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
