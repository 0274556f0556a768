"""The MLflow store: runs that live on through restarts, and a store that fails without ending the work."""

import fcntl
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uniaudio import store
from uniaudio.errors import MissingDependency, Unavailable, UserError
from uniaudio.store import StoredRun, artifact_root, tracking_uri


def open_run(output_dir: Path, run_id: str | None = None, **params: str) -> StoredRun:
    return StoredRun(output_dir, experiment="tests", run_id=run_id, params=params, config="a: 1\n", tags={"git_commit": "abc"})


@pytest.fixture(autouse=True)
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one store serves several tests: making its tables takes seconds."""
    return tmp_path_factory.mktemp("store")


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """What a full disk is to a file that must grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_two_that_start_at_once_make_the_tables_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    def create(self: StoredRun, *arguments: object, **options: object) -> str:
        with (folder / ".mlflow.db.lock").open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)
        return made(self, *arguments, **options)  # type: ignore[arg-type]

    made = StoredRun._create
    monkeypatch.setattr(StoredRun, "_create", create)
    open_run(folder / "at_once").finish("FINISHED")
    assert held == [True]
    with (folder / ".mlflow.db.lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def test_a_resumed_run_continues_and_keeps_everything(folder: Path) -> None:
    first = open_run(folder / "run", steps="400")
    first.log(1, {"loss": 2.5})
    first.finish("KILLED")
    second = open_run(folder / "run", first.run_id, steps="999", seed="1")
    assert second.run_id == first.run_id
    for step in range(2, 1500):
        second.log(step, {"loss": 1.0})  # more than one batch
    second.finish("FINISHED", {"farm.json": "{}"})
    stored = second._client.get_run(first.run_id)
    assert stored.info.status == "FINISHED" and stored.data.tags["git_commit"] == "abc"
    assert stored.data.params == {"steps": "400", "seed": "1"}, "a parameter is that of the first start"
    assert [metric.step for metric in second._client.get_metric_history(first.run_id, "loss")] == list(range(1, 1500))
    assert {artifact.path for artifact in second._client.list_artifacts(first.run_id)} == {"config.yaml", "farm.json"}
    assert (folder / "mlflow.db").is_file() and list((folder / "mlartifacts").rglob("config.yaml"))
    lost = open_run(folder / "run", "0" * 32)
    assert lost.run_id != first.run_id
    assert lost._client.get_run(lost.run_id).data.tags["resumed_from"] == "0" * 32
    lost._client.delete_run(lost.run_id)
    again = open_run(folder / "run", lost.run_id)
    assert again.run_id != lost.run_id, "as one that is not there"
    again.finish("FINISHED")


def test_a_deleted_experiment_is_one_line_with_what_to_do(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run")
    run.finish("KILLED")
    [experiment] = [each for each in run._client.search_experiments() if each.name != "Default"]
    run._client.delete_experiment(experiment.experiment_id)
    number, restore = experiment.experiment_id, "remedy: `mlflow experiments restore --experiment-id"
    told = rf"experiment was deleted \| seen: {experiment.name} in .*mlflow.db \| {restore} {number}`"
    for run_id in (None, run.run_id):
        with pytest.raises(UserError, match=told):
            open_run(tmp_path / "run", run_id)


def test_artifacts_lie_beside_the_file_that_is_the_store_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert artifact_root("sqlite:////data/all.db") == "file:///data/mlartifacts"
    assert artifact_root("sqlite:///all.db") == (tmp_path / "mlartifacts").as_uri()
    assert artifact_root("http://tracking:5000") is None and artifact_root("postgresql://tracking/mlflow") is None


def test_a_disk_that_fills_up_is_a_warning_and_the_metrics_are_sent_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(store.logger, "warning", lambda form, *values: said.append(form % values))
    run = open_run(folder / "run")
    run.log(1, {f"metric{number}": 1.0 for number in range(800)})
    with no_file_longer_than((folder / "mlflow.db").stat().st_size):
        run.flush()
        run.wait()
        assert "does not answer" in said[0] and "going on without it for 30 s" in said[0]
        run.flush()
        run.wait()
        assert len(said) == 1, "it is not asked again at once"
        run.finish("FINISHED")
    assert "800 metrics were not sent" in said[-1]
    run.finish("FINISHED")
    assert len(run._client.get_run(run.run_id).data.metrics) == 800


def test_what_is_logged_while_the_store_is_slow_waits_for_nobody_and_is_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, answers, sizes = open_run(folder / "run"), threading.Event(), []
    log_batch = run._client.log_batch

    def slow(run_id: str, metrics: list) -> None:
        sizes.append(len(metrics))
        assert answers.wait(60)
        log_batch(run_id, metrics=metrics)

    monkeypatch.setattr(run._client, "log_batch", slow)
    for step in range(1, 1001):
        run.log(step, {"loss": 1.0})
        run.flush()
    assert sum(sizes) < 1000, "it is still at the first of them"
    answers.set()
    run.finish("FINISHED")
    assert [metric.step for metric in run._client.get_metric_history(run.run_id, "loss")] == list(range(1, 1001))


def test_the_newest_metrics_are_kept_where_a_sending_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(folder / "run")
    monkeypatch.setattr("uniaudio.store.KEPT", 4)
    run._pending = deque(maxlen=4)

    def fails(run_id: str, metrics: list) -> None:
        run._pending.extend(["newer", "newest"])
        raise OSError("away")

    monkeypatch.setattr(run._client, "log_batch", fails)
    run._pending.extend(["a", "b", "c"])
    with pytest.raises(OSError, match="away"):
        run._send()
    assert list(run._pending) == ["b", "c", "newer", "newest"]
    run._pending.clear()


def test_a_full_disk_at_the_start_is_one_line(tmp_path: Path) -> None:
    with no_file_longer_than(20_000), pytest.raises(UserError, match=r"the MLflow store cannot be used .*mlflow\.db.*MLFLOW_TRACKING_URI"):
        open_run(tmp_path / "run")


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking_uri(tmp_path / "run") == address
    with pytest.raises(Unavailable, match=rf"the MLflow store cannot be used .*seen: {address}"):
        open_run(tmp_path / "run")


def test_without_mlflow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependency, match=r"tracking needs the package mlflow.*uniaudio\[train\]"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    "address", ["htp://me:secret@x", "sqlite:///", "sqlite://", "sqlite:///:memory:", "http://", "postgresql://me:secret@h:port/x"]
)
def test_an_address_of_a_wrong_form_is_a_users_fault(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match=r"cannot be used \| seen: .* \| allowed: http.*sqlite:.* \| remedy: correct MLFLOW") as caught:
        open_run(tmp_path / "run")
    assert caught.value.exit_code == 2 and "secret" not in str(caught.value)
    assert str(caught.value.seen).startswith(address.replace("me:secret", "***"))


def test_a_missing_driver_is_one_line_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, module, package in [
        ("postgresql+psycopg2://me:secret@127.0.0.1:9/x", "psycopg2", "psycopg2-binary"),
        ("mysql+pymysql://me:secret@127.0.0.1:9/x", "pymysql", "pymysql"),
    ]:
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(UserError, match=rf"needs the package {module}.*remedy: pip install '{package}'") as caught:
            open_run(tmp_path / "run")
        assert caught.value.exit_code == 2 and "secret" not in str(caught.value)


def test_a_batch_refused_for_good_is_dropped_and_later_ones_are_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(store.logger, "warning", lambda form, *values: said.append(form % values))
    run = open_run(folder / "run")
    for _ in range(2):
        run.log(1, {"wrong: name?": 1.0})
        run.flush()
        run.wait()
    run.log(2, {"loss": 1.0})
    run.finish("FINISHED")
    stored = run._client.get_run(run.run_id)
    assert stored.data.metrics == {"loss": 1.0} and stored.info.status == "FINISHED"
    assert len(said) == 1 and "refused 1 metrics for good" in said[0] and "wrong: name?" in said[0]
    run._client.delete_run(run.run_id)
    run.log(3, {"loss": 2.0})
    run._try(run._send)
    assert not run._pending and len(said) == 2 and "deleted" in said[1]


HANGS = """
import socket, sys
from pathlib import Path
from uniaudio.store import StoredRun
run = StoredRun(Path(sys.argv[1]) / "run", experiment="tests", run_id=None, params={}, config="")
server = socket.create_server(("127.0.0.1", 0))  # accepts, and answers nothing
import mlflow
run._client = mlflow.MlflowClient(tracking_uri=f"http://127.0.0.1:{server.getsockname()[1]}")
run.log(1, {"loss": 1.0})
if sys.argv[2] == "sending":
    run.flush()
run.log(2, {"loss": 1.0})
print("begin", flush=True)
run.finish("KILLED")
sys.exit(75)
"""


@pytest.mark.parametrize("when", ["sending", "idle"])
def test_a_store_that_hangs_does_not_keep_a_killed_training(when: str, folder: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(folder), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == "begin\n"
        began = time.monotonic()
        told = process.stderr.read()
    assert process.returncode == 75 and time.monotonic() - began < store.KILLED_SECONDS + 5
    assert "2 metrics were not sent" in told
