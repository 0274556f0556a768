"""MLflow: one run for the whole life of a training or a farm, through every restart. The only module that imports mlflow.

Owns where the store lies (MLFLOW_TRACKING_URI, else a sqlite file beside the folder that is written), continuing a run by its id, and
what happens when the store fails: at the start one clear error; later a warning, and the work goes on. What could not be sent is kept
(the newest KEPT metrics) and sent when the store is back. A thread sends, so that no step waits for it: ten steps' metrics take a sqlite
file some 60 ms, and a server may take seconds.
"""

import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uniaudio.errors import MissingDependency, Unavailable, UserError
from uniaudio.log import get_logger
from uniaudio.store_address import check_address, missing_driver, shown, wrong_address

BATCH = 900  # metrics of one log_batch call; the server refuses more than 1000 entities
PARAMS = 100  # parameters of one call
KEPT = 100_000  # metrics kept while the store is away
KILLED_SECONDS = 5.0  # for the store where a signal ends the work: the checkpoint is saved, and a scheduler kills what stays
FOR_GOOD = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")  # what MLflow refuses every time
WAIT_SECONDS = 30.0  # before a store that failed is tried again; doubled each time
logger = get_logger("store")


def tracking_uri(output_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file beside `output_dir`: a farm and its training lie in the same one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output_dir.resolve().parent / 'mlflow.db'}"


def artifact_root(uri: str) -> str | None:
    """`mlartifacts` beside a sqlite file; None, a server's own choice, elsewhere. MLflow's own for sqlite is `mlruns` where one stands."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time for a sqlite file: MLflow makes a new one's tables at the first call, and two that do it at once both fail."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    with path.with_name(f".{path.name}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class StoredRun:
    """One MLflow run. `run_id` continues that run where the store has it; otherwise a new one is made."""

    def __init__(
        self,
        output_dir: Path,
        *,
        experiment: str,
        run_id: str | None,
        params: Mapping[str, str],
        config: str,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Opens or makes the run, named after `output_dir`, and logs `params`, `tags` and the resolved config as the artifact config.yaml.

        Raises:
            UserError: the address is wrong, the store cannot be written (a full disk), or mlflow or a database's driver is not installed.
            Unavailable: its server does not answer.
        """
        self.uri = tracking_uri(output_dir)
        check_address(self.uri)
        self._pending: deque[Any] = deque(maxlen=KEPT)
        self._sending: Future[bool] = Future()
        self._sending.set_result(True)
        self._under_way, self._refusals = 0, set[str]()
        self._failures, self._retry_at = 0, 0.0
        mlflow = _import_mlflow()
        self._entities, self._faults = mlflow.entities, _faults(mlflow)
        at_start: tuple[type[Exception], ...] = (*self._faults, ValueError)  # SQLAlchemy's of a port that is none
        try:
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.uri):
                self._client = mlflow.MlflowClient(tracking_uri=self.uri)
                self.run_id = self._continue(mlflow, run_id) or self._create(experiment, output_dir, resumed_from=run_id)
            self._log_settings(params, tags or {}, config)
        except ModuleNotFoundError as error:
            raise missing_driver(self.uri, error) from error
        except at_start as error:
            if _refused_for_good(error):
                raise wrong_address(self.uri, _one_line(error)) from error
            kind = UserError if self.uri.startswith("sqlite:") else Unavailable
            raise kind(
                "the MLflow store cannot be used",
                seen=f"{shown(self.uri)}: {_one_line(error)}",
                remedy="free space or correct its address; MLFLOW_TRACKING_URI=sqlite:////other/place/mlflow.db names another store",
            ) from error
        logger.info("MLflow run %s of experiment %s in %s", self.run_id, experiment, shown(self.uri))

    def _continue(self, mlflow: Any, run_id: str | None) -> str | None:
        if run_id is None:
            return None
        try:
            deleted = self._client.get_run(run_id).info.lifecycle_stage == "deleted"
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("the MLflow run %s is not in %s; a new run is made", run_id, shown(self.uri))
            return None
        if deleted:
            logger.warning("the MLflow run %s was deleted in %s; a new run is made", run_id, shown(self.uri))
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _create(self, experiment: str, output_dir: Path, *, resumed_from: str | None) -> str:
        known = self._client.get_experiment_by_name(experiment)
        if known is None:
            experiment_id = self._client.create_experiment(experiment, artifact_location=artifact_root(self.uri))
        elif known.lifecycle_stage == "deleted":
            remedy = f"`mlflow experiments restore --experiment-id {known.experiment_id}`, or another name"
            raise UserError("the MLflow experiment was deleted", seen=f"{experiment} in {shown(self.uri)}", remedy=remedy)
        else:
            experiment_id = known.experiment_id
        tags = {"resumed_from": resumed_from} if resumed_from else {}
        return self._client.create_run(experiment_id, run_name=output_dir.resolve().name, tags=tags).info.run_id

    def _log_settings(self, params: Mapping[str, str], tags: Mapping[str, str], config: str) -> None:
        """Parameters cannot change once logged, so a resume under another config keeps the first ones; the artifact has the newest."""
        known = self._client.get_run(self.run_id).data.params
        fresh = [self._entities.Param(key, value[:500]) for key, value in params.items() if key not in known]
        for start in range(0, len(fresh), PARAMS):
            self._client.log_batch(self.run_id, params=fresh[start : start + PARAMS])
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)
        self._client.log_text(self.run_id, config, "config.yaml")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keeps the metrics of a step for the next `flush`."""
        now = int(time.time() * 1000)
        self._pending.extend(self._entities.Metric(key, float(value), now, step) for key, value in metrics.items())

    def flush(self) -> None:
        """Begins to send what is kept, beside what the caller does next; while the store is away, only now and then."""
        if self._pending and self._sending.done() and time.monotonic() >= self._retry_at:
            self.wait()
            self._sending = self._begin(self._send)

    def wait(self) -> None:
        """Until what is being sent is sent, or could not be."""
        self._sending.result()

    def _begin(self, action: Callable[[], None]) -> Future[bool]:
        """`_try` in a thread that does not keep the process from ending, as those of an executor do."""
        done: Future[bool] = Future()

        def work() -> None:
            try:
                done.set_result(self._try(action))
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                done.set_exception(error)

        threading.Thread(target=work, name="mlflow", daemon=True).start()
        return done

    def _send(self) -> None:
        while self._pending:
            batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]
            self._under_way = len(batch)
            try:
                self._client.log_batch(self.run_id, metrics=batch)
            except self._faults as error:
                if not _refused_for_good(error):
                    room = KEPT - len(self._pending)  # what came meanwhile is newer
                    self._pending.extendleft(reversed(batch[max(0, len(batch) - room) :]))
                    raise
                self._tell_refusal(len(batch), _one_line(error))
            finally:
                self._under_way = 0

    def _tell_refusal(self, metrics: int, why: str) -> None:
        if why not in self._refusals:  # a run that was deleted refuses every batch
            self._refusals.add(why)
            logger.warning("MLflow refused %d metrics for good (%s); they are left out there, metrics.jsonl has them", metrics, why)

    def finish(self, status: str, artifacts: Mapping[str, str] | None = None) -> None:
        """Sends what is kept, stores texts by file name, and closes the run: FINISHED, FAILED or KILLED (it goes on later).

        KILLED waits KILLED_SECONDS at most: what hangs is left to a thread that ends with the process.
        """

        def close() -> None:
            self._send()
            for name, text in (artifacts or {}).items():
                self._client.log_text(self.run_id, text, name)
            self._client.set_terminated(self.run_id, status=status)

        end = time.monotonic() + KILLED_SECONDS if status == "KILLED" else None
        if self._ends_by(self._sending, end):
            self._sending = self._begin(close)
        if not self._ends_by(self._sending, end) or not self._sending.result():
            unsent = len(self._pending) + self._under_way
            logger.warning("MLflow run %s was left as it is: %d metrics were not sent", self.run_id, unsent)

    @staticmethod
    def _ends_by(sending: "Future[bool]", end: float | None) -> bool:
        return bool(wait_for([sending], None if end is None else max(0.0, end - time.monotonic())).done)

    def _try(self, action: Callable[[], None]) -> bool:
        """Runs `action`; a fault of the store is told, and ends nothing."""
        try:
            action()
        except self._faults as error:
            wait = WAIT_SECONDS * 2 ** min(self._failures, 6)
            self._failures, self._retry_at = self._failures + 1, time.monotonic() + wait
            logger.warning("MLflow in %s does not answer (%s); going on without it for %.0f s", shown(self.uri), _one_line(error), wait)
            return False
        self._failures = 0
        return True


def _faults(mlflow: Any) -> tuple[type[Exception], ...]:
    """What a store that is full, locked or away raises: errors of MLflow, SQLAlchemy and alembic, and OSError (those of requests too)."""
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    return (mlflow.exceptions.MlflowException, SQLAlchemyError, CommandError, OSError)


def _refused_for_good(error: Exception) -> bool:
    """Whether the same call would be refused again: a wrong value, name or address, a run that was deleted."""
    from sqlalchemy.exc import ArgumentError

    is_value = isinstance(error, ValueError) and not isinstance(error, OSError)  # some of requests' are both
    return is_value or isinstance(error, ArgumentError) or getattr(error, "error_code", None) in FOR_GOOD


def _one_line(error: Exception) -> str:
    """The error's first line, without the statement and the background that SQLAlchemy puts behind it."""
    return shown(" ".join(str(error).split("\n")[0].split()))[:200]


def _import_mlflow() -> Any:
    """mlflow without telemetry, without the log of its database migrations, and with a server's patience of seconds, not minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise MissingDependency("mlflow", needed_for="tracking", extra="train") from error

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    return mlflow
