"""What MLflow is told of a training: parameters, the commit, the farm run that made its shards. Rank 0 only."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from uniaudio.configs.load import dump_config
from uniaudio.configs.run import RunConfig
from uniaudio.configs.section import Section
from uniaudio.errors import UserError
from uniaudio.store import StoredRun


def git_commit() -> str:
    """Commit of the code that runs, with `-dirty` where files differ from it; outside a git checkout UNIAUDIO_GIT_COMMIT, or `unknown`."""
    where, elsewhere = Path(__file__).resolve().parent, os.environ.get("UNIAUDIO_GIT_COMMIT", "unknown")
    command = ["git", "-C", str(where), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return elsewhere
    return result.stdout.strip() if result.returncode == 0 else elsewhere


def farm_runs(shards: Path) -> dict[str, str]:
    """What the folder of shards says of the farm run that made it (`farm.json`), as tags; empty where it says nothing."""
    record = _farm_record(shards)
    return {f"farm.{key}": str(value) for key, value in record.items() if isinstance(value, str | int | float)}


def shard_tokenizers(shards: Path) -> dict[str, dict[str, Any]]:
    """View -> `name`, `options` and `version` of the tokenizer that made it: what generation needs to speak the same codes."""
    record = _farm_record(shards)
    versions = record.get("tokenizers", {})
    return {view: {**config, "version": versions.get(view)} for view, config in record.get("tokenizer_configs", {}).items()}


def _farm_record(shards: Path) -> dict[str, Any]:
    path = shards / "farm.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON", seen=error, remedy="run uniaudio tokenize again; it rewrites the file") from error


def flatten(section: Section) -> dict[str, str]:
    """The config as `section.key` -> text."""

    def walk(prefix: str, value: Any) -> dict[str, str]:
        if isinstance(value, dict) and value:
            return {
                name: text for key, part in value.items() for name, text in walk(f"{prefix}.{key}" if prefix else str(key), part).items()
            }
        return {prefix: json.dumps(value) if isinstance(value, list | dict) else str(value)}

    return walk("", section.model_dump(mode="json"))


class Tracker(StoredRun):
    """The MLflow run of a training. `run_id` continues that run where the store has it; otherwise a new one is made."""

    def __init__(self, run: RunConfig, *, run_id: str | None, tags: dict[str, str]) -> None:
        """Raises UserError where the store cannot be used."""
        output_dir, experiment = Path(run.train.output_dir), run.train.experiment
        super().__init__(output_dir, experiment=experiment, run_id=run_id, params=flatten(run), config=dump_config(run), tags=tags)
