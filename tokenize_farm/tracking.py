"""MLflow for a farm: one run for its whole life, through every rerun over the same output folder. The driver only.

The store: MLFLOW_TRACKING_URI, else a sqlite file beside the output folder (the training's run lies in the same one, and names the farm's).
The only module of `tokenize_farm` that imports mlflow.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config
from uniaudio.log import get_logger

logger = get_logger("tracking")


def tracking_uri(output_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file beside the folder of shards."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output_dir.resolve().parent / 'mlflow.db'}"


class Tracker:
    """One MLflow run. `run_id` continues that run where the store has it; otherwise a new one is made."""

    def __init__(self, config: FarmConfig, *, run_id: str | None) -> None:
        mlflow = _import_mlflow()
        output_dir = Path(config.output_dir)
        self.uri = tracking_uri(output_dir)
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=self.uri)
        self.run_id = self._continue(mlflow, run_id) or self._create(config, output_dir)
        logger.info("MLflow run %s of experiment %s in %s", self.run_id, config.experiment, self.uri)
        known = self._client.get_run(self.run_id).data.params
        fresh = {key: str(value)[:500] for key, value in config.model_dump(mode="json").items() if key not in known}
        self._client.log_batch(self.run_id, params=[self._entities.Param(key, value) for key, value in fresh.items()])
        self._client.log_text(self.run_id, dump_config(config), "config.yaml")

    def _continue(self, mlflow: Any, run_id: str | None) -> str | None:
        if run_id is None:
            return None
        try:
            self._client.get_run(run_id)
        except mlflow.exceptions.MlflowException as error:
            logger.warning("the MLflow run %s of these shards is not in %s (%s); a new run is made", run_id, self.uri, error)
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _create(self, config: FarmConfig, output_dir: Path) -> str:
        experiment = self._client.get_experiment_by_name(config.experiment)
        if experiment is None:
            where = None if os.environ.get("MLFLOW_TRACKING_URI") else (output_dir.resolve().parent / "mlartifacts").as_uri()
            experiment_id = self._client.create_experiment(config.experiment, artifact_location=where)
        else:
            experiment_id = experiment.experiment_id
        return self._client.create_run(experiment_id, run_name=output_dir.name).info.run_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Sends the metrics of a step (units published so far)."""
        now = int(time.time() * 1000)
        self._client.log_batch(self.run_id, metrics=[self._entities.Metric(key, float(value), now, step) for key, value in metrics.items()])

    def finish(self, status: str, artifacts: dict[str, str]) -> None:
        """Stores texts by file name and closes the run: FINISHED, FAILED or KILLED."""
        for name, text in artifacts.items():
            self._client.log_text(self.run_id, text, name)
        self._client.set_terminated(self.run_id, status=status)


def _import_mlflow() -> Any:
    """mlflow without telemetry and without the log of its database migrations."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    for name in ("alembic", "mlflow.store.db.utils", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow
