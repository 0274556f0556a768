"""MLflow for a training run: one run for its whole life, through every resume. Rank 0 only.

Owns where the store lies (MLFLOW_TRACKING_URI, else a sqlite file beside `output_dir`), what is a parameter and what an artifact. Metrics
are kept in memory and sent in batches. The only module of `pretrain` that imports mlflow.
"""

import json
import logging
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from uniaudio.configs.load import dump_config
from uniaudio.configs.run import RunConfig
from uniaudio.configs.section import Section
from uniaudio.errors import UserError
from uniaudio.log import get_logger

BATCH = 900  # entities of one log_batch call; the server refuses more than 1000
logger = get_logger("tracking")


def tracking_uri(output_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file beside the run's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output_dir.resolve().parent / 'mlflow.db'}"


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


class Tracker:
    """One MLflow run. `run_id` continues that run where the store has it; otherwise a new one is made."""

    def __init__(self, run: RunConfig, *, run_id: str | None, tags: dict[str, str]) -> None:
        mlflow = _import_mlflow()
        output_dir = Path(run.train.output_dir)
        self.uri = tracking_uri(output_dir)
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=self.uri)
        self._pending: list[Any] = []
        self.run_id = self._continue(mlflow, run_id) or self._create(run, output_dir, tags, resumed_from=run_id)
        logger.info("MLflow run %s of experiment %s in %s", self.run_id, run.train.experiment, self.uri)
        self._log_config(run, tags)

    def _continue(self, mlflow: Any, run_id: str | None) -> str | None:
        if run_id is None:
            return None
        try:
            self._client.get_run(run_id)
        except mlflow.exceptions.MlflowException as error:
            logger.warning("the checkpoint's MLflow run %s is not in %s (%s); a new run is made", run_id, self.uri, error)
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _create(self, run: RunConfig, output_dir: Path, tags: dict[str, str], *, resumed_from: str | None) -> str:
        experiment = self._client.get_experiment_by_name(run.train.experiment)
        if experiment is None:
            where = None if os.environ.get("MLFLOW_TRACKING_URI") else (output_dir.resolve().parent / "mlartifacts").as_uri()
            experiment_id = self._client.create_experiment(run.train.experiment, artifact_location=where)
        else:
            experiment_id = experiment.experiment_id
        extra = {"resumed_from": resumed_from} if resumed_from else {}
        return self._client.create_run(experiment_id, run_name=output_dir.name, tags={**tags, **extra}).info.run_id

    def _log_config(self, run: RunConfig, tags: dict[str, str]) -> None:
        """Parameters cannot change once logged, so a resume under another config keeps the first ones; the artifact has the newest."""
        known = self._client.get_run(self.run_id).data.params
        fresh = {key: value for key, value in flatten(run).items() if key not in known}
        params = [self._entities.Param(key, value[:500]) for key, value in fresh.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(self.run_id, params=params[start : start + 100])
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)
        self._client.log_text(self.run_id, dump_config(run), "config.yaml")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keeps the metrics of a step for the next `flush`."""
        now = int(time.time() * 1000)
        self._pending += [self._entities.Metric(key, value, now, step) for key, value in metrics.items()]

    def flush(self) -> None:
        """Sends what is kept."""
        for start in range(0, len(self._pending), BATCH):
            self._client.log_batch(self.run_id, metrics=self._pending[start : start + BATCH])
        self._pending.clear()

    def finish(self, status: str) -> None:
        """Sends what is kept and closes the run: FINISHED, FAILED or KILLED (preempted: it goes on later)."""
        self.flush()
        self._client.set_terminated(self.run_id, status=status)


def _import_mlflow() -> Any:
    """mlflow without telemetry and without the log of its database migrations."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    for name in ("alembic", "mlflow.store.db.utils", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow
