"""`uniaudio train` as a user starts it: two processes by one command, killed, preempted, resumed; and its faults as one line."""

import fcntl
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from random_shards import write_random_shards
from ranks import run_ranks

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.lock import only_writer
from uniaudio.pretrain.data.loader import make_loader
from uniaudio.pretrain.data.vocabulary import load_vocabulary

STEPS = 40
CONFIG = """
model: {width: 32, num_heads: 2, ffn_width: 64, global_layers: 2, local_layers: 1, max_positions: 256, text_width: 16, kernels: torch}
data: {shards: FOLDER/shards, tasks: [tts, sound], frames_per_row: 128, rows_per_micro_batch: 2, prompt_seconds: 0.3}
optim: {lr: 0.01, warmup_steps: 5}
train: {output_dir: FOLDER/whole, steps: 40, device: cpu, log_every: 1, save_every: 8, evaluate_batches: 2, threads: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and the config run.yaml."""
    folder = tmp_path_factory.mktemp("train")
    shards = folder / "shards"
    write_random_shards(shards, clips=60, valid_clips=24, codebooks=3, text_width=16, frames=(20, 60), clips_per_shard=20)
    (folder / "run.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    (shards / "farm.json").write_text(json.dumps({"run_id": "farm-run-7", "status": "finished"}))
    return folder


def start(folder: Path, name: str, *overrides: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "uniaudio", "train", str(folder / "run.yaml"), f"train.output_dir={folder / name}", *overrides]
    environment = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RANK", "WORLD_SIZE")}
    options = {"env": {**environment, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, **{"preexec_fn": _as_from_a_shell, **options})


def _as_from_a_shell() -> None:
    """These tests themselves may run under nohup, or in the background of a script, and what is ignored there is ignored by children."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def lines(folder: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path, name: str) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines(folder, name) if "loss" in line]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler of this signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_a_crash_in_native_code_says_where(folder: Path) -> None:
    process = start(folder, "crashed")
    wait_for(lambda: handles(process.pid, signal.SIGSEGV), process)
    process.send_signal(signal.SIGSEGV)
    code, errors = finish(process)
    assert code == -signal.SIGSEGV and "Fatal Python error: Segmentation fault" in errors and 'File "' in errors


def kill_behind_a_checkpoint(folder: Path, name: str, process: subprocess.Popen[str]) -> None:
    """kill -9 once the newest checkpoint's step is in MLflow too, which a thread tells: a kill before that leaves the step out there."""

    def told() -> bool:
        saved = [int(path.parent.name[len("step-") :]) for path in (folder / name / "checkpoints").glob("step-*/manifest.json")]
        query = "select 1 from metrics join runs using (run_uuid) where name = ? and key = 'data/documents' and step = ?"
        with suppress(sqlite3.OperationalError), sqlite3.connect(f"file:{folder / 'mlflow.db'}?mode=ro", uri=True) as store:
            return bool(saved) and store.execute(query, (name, max(saved))).fetchone() is not None
        return False

    wait_for(told, process)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_killed_then_resumed_equals_uninterrupted(folder: Path) -> None:
    code, errors = finish(start(folder, "whole"))
    assert code == 0, errors
    whole = losses(folder, "whole")
    assert [step for step, *_ in whole] == list(range(1, STEPS + 1))

    killed = start(folder, "broken")
    kill_behind_a_checkpoint(folder, "broken", killed)
    assert not (folder / "broken" / "checkpoints" / f"step-{STEPS:08d}").exists(), "killed in the middle"

    code, errors = finish(start(folder, "broken"))
    assert code == 0, errors
    assert "resumed from" in errors
    assert losses(folder, "broken") == whole, "bit for bit"
    held_out = [[line for line in lines(folder, name) if "valid/loss" in line][-1] for name in ("broken", "whole")]
    assert held_out[0] == held_out[1]
    check_mlflow(folder / "mlflow.db")


@pytest.mark.slow
def test_killed_then_resumed_on_more_ranks_reads_the_same_documents(folder: Path) -> None:
    """Two ranks of one row each go on where one rank of two rows was killed: MLflow holds the same checksum of documents for every step."""
    killed = start(folder, "moved")
    kill_behind_a_checkpoint(folder, "moved", killed)
    code, errors = finish(start(folder, "moved", "parallel.data_parallel_size=2", "data.rows_per_micro_batch=1"))
    assert code == 0 and "resumed from" in errors, errors
    data = {
        "shards": str(folder / "shards"),
        "tasks": ("tts", "sound"),
        "frames_per_row": 128,
        "rows_per_micro_batch": 2,
        "prompt_seconds": 0.3,
    }
    loader = make_loader(DataConfig(**data), ModelConfig(width=32, num_heads=2, text_width=16), load_vocabulary("paper"))
    expected = {step: loader.metrics(step)["data/documents"] for step in range(1, STEPS + 1)}
    loader.close()
    assert len(set(expected.values())) == STEPS
    with sqlite3.connect(folder / "mlflow.db") as store:
        rows = store.execute("select step, value from metrics join runs using (run_uuid) where name = 'moved' and key = 'data/documents'")
        assert dict(rows) == expected


@pytest.mark.slow
def test_two_processes_by_one_command_save_on_ctrl_c(folder: Path) -> None:
    process = start(folder, "preempted", "parallel.tensor_parallel_size=2", "train.steps=100000", "train.save_every=100000")
    wait_for(lambda: (folder / "preempted" / "metrics.jsonl").exists() and bool(losses(folder, "preempted")), process)
    assert len(children_of(process)) == 2
    process.send_signal(signal.SIGINT)
    code, errors = finish(process)
    assert code == 75, errors
    last = losses(folder, "preempted")[-1][0]
    assert errors.count("is saved; the same command goes on") == 1 and f"asked to stop: step {last} is saved" in errors
    assert (folder / "preempted" / "checkpoints" / f"step-{last:08d}" / "manifest.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_every_process_of_the_job_lets_the_trainer_save(folder: Path, number: int) -> None:
    """Slurm sends it to all of them, the loader's workers too, and a terminal Ctrl-C and its own end."""
    name = f"all-{number}"
    process = start(folder, name, "data.workers=2", "train.steps=100000", "train.save_every=100000", "train.evaluate_every=2")
    wait_for(lambda: (folder / name / "metrics.jsonl").exists() and len(losses(folder, name)) > 2, process)
    workers = children_of(process)
    assert len(workers) >= 2
    for pid in (*workers, process.pid):
        os.kill(pid, number)
    code, errors = finish(process)
    assert code == 75 and "Traceback" not in errors and "DataLoader worker" not in errors, errors
    assert f"asked to stop: step {losses(folder, name)[-1][0]} is saved" in errors
    assert not any(map(is_alive, workers))


def test_a_terminal_that_is_gone_takes_nothing_along(folder: Path) -> None:
    """Its end is a SIGHUP, and what is written to it fails from then on: the progress bar's lines too."""
    mine, terminal = pty.openpty()
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = start(folder, "gone", "train.steps=100000", "train.save_every=100000", **streams, preexec_fn=_take_terminal)
    os.close(terminal)
    bar = b""
    while b"loss" not in bar:
        bar = bar[-64:] + os.read(mine, 4096)
    os.close(mine)
    assert process.wait(timeout=120) == 75
    last = losses(folder, "gone")[-1][0]
    assert (folder / "gone" / "checkpoints" / f"step-{last:08d}" / "manifest.json").is_file()
    with sqlite3.connect(folder / "mlflow.db") as store:
        assert store.execute("select status from runs where name = 'gone'").fetchone() == ("KILLED",)


def test_a_signal_that_is_ignored_at_the_start_stays_so(folder: Path) -> None:
    process = start(folder, "nohup", "train.steps=100000", "train.save_every=100000", preexec_fn=_as_under_nohup)
    wait_for(lambda: (folder / "nohup" / "metrics.jsonl").exists() and bool(losses(folder, "nohup")), process)
    process.send_signal(signal.SIGHUP)
    seen = losses(folder, "nohup")[-1][0]
    wait_for(lambda: losses(folder, "nohup")[-1][0] > seen + 2, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75


def _as_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _take_terminal() -> None:
    _as_from_a_shell()
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_signals_behind_the_save_change_no_exit_code(folder: Path, ranks: int) -> None:
    """A scheduler that asks again, or asks every process, while the interpreters wind up: seconds, with the libraries that are loaded."""
    name = f"again-{ranks}"
    many = ["train.steps=100000", "train.save_every=100000", f"parallel.data_parallel_size={ranks}"]
    process = start(folder, name, *many)
    wait_for(lambda: (folder / name / "metrics.jsonl").exists() and bool(losses(folder, name)), process)
    pids = [process.pid, *(children_of(process) if ranks > 1 else [])]
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    said = next(line for line in process.stderr if "is saved" in line)
    while process.poll() is None:
        for pid in filter(is_alive, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.01)
    code, errors = finish(process)
    assert code == 75 and "asked to stop" in said and "before the first step" not in errors, errors


def test_a_rank_that_is_killed_is_named_and_ends_all(folder: Path) -> None:
    process = start(folder, "killed", "parallel.data_parallel_size=2", "train.steps=100000")
    wait_for(lambda: (folder / "killed" / "metrics.jsonl").exists() and bool(losses(folder, "killed")), process)
    ranks = children_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    code, errors = finish(process)
    assert code == 137 and "Traceback" not in errors, errors
    assert f"rank 1 (pid {ranks[1]}) was ended by SIGKILL, so all end; the same command goes on" in errors
    assert not any(map(is_alive, ranks))


def test_a_fault_of_one_rank_is_one_line_of_all(folder: Path) -> None:
    """The others only lack their partner: what they would say of it hides the cause."""
    (folder / "spoilt").mkdir()
    (folder / "spoilt" / "mlflow.db").write_bytes(b"no database" * 100)
    code, errors = finish(start(folder, "spoilt/run", "parallel.data_parallel_size=2", "train.steps=100000"))
    assert code == 2 and "Traceback" not in errors, errors
    assert errors.strip().splitlines()[-1].startswith("uniaudio: error: the MLflow store cannot be used | seen: ")


def test_ranks_die_with_the_command_that_started_them(folder: Path) -> None:
    process = start(folder, "orphans", "parallel.tensor_parallel_size=2")
    wait_for(lambda: len(children_of(process)) == 2, process)
    ranks = children_of(process)
    time.sleep(0.5)
    assert all(map(is_alive, ranks))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(is_alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, ranks))


def test_a_second_training_in_the_same_folder_is_refused(folder: Path) -> None:
    with only_writer(folder / "taken", what="training", key="train.output_dir"):
        code, errors = finish(start(folder, "taken"))
    assert code == 69, "a scheduler tries again: the lock of a node that died is given back late"
    [line] = errors.strip().splitlines()
    assert f"another training is writing into this folder | seen: {folder / 'taken'} (process {os.getpid()} on" in line


def check_mlflow(path: Path) -> None:
    """One run for each output folder, through kills and resumes, with everything that it must hold."""
    with sqlite3.connect(path) as store:
        assert sorted(name for (name,) in store.execute("select name from runs")) == ["broken", "whole"]
        newest = store.execute("select run_uuid from runs where name = 'broken' and status = 'FINISHED'").fetchone()[0]
        keys = {key for (key,) in store.execute("select distinct key from metrics where run_uuid = ?", (newest,))}
        tags = dict(store.execute("select key, value from tags where run_uuid = ?", (newest,)))
        params = dict(store.execute("select key, value from params where run_uuid = ?", (newest,)))
        steps = [step for (step,) in store.execute("select distinct step from metrics where run_uuid = ? and key = 'loss'", (newest,))]
    assert {
        "loss",
        "unigram",
        "loss/task/tts",
        "loss/level/2",
        "learning_rate",
        "gradient_norm",
        "frames_per_second",
        "mfu",
        "data/row",
    } <= keys
    assert {"valid/loss", "valid/unigram"} <= keys
    assert tags["farm.run_id"] == "farm-run-7" and len(tags["git_commit"]) >= 7
    assert params["optim.lr"] == "0.01" and params["parallel.tensor_parallel_size"] == "1"
    assert sorted(steps) == list(range(1, STEPS + 1)), "the same run id through every resume"


def test_a_fault_of_every_rank_is_shown_once(folder: Path) -> None:
    empty = folder / "empty"
    empty.mkdir()
    code, errors = finish(start(folder, "nowhere", f"data.shards={empty}", "parallel.data_parallel_size=2"))
    assert code == 2
    [line] = [line for line in errors.splitlines() if "uniaudio: error: " in line]
    assert f"data.shards holds no clip of the split train | seen: {empty} | remedy: run `uniaudio tokenize`" in line


def train_rank(config: dict[str, object]) -> int:
    from uniaudio.configs.run import RunConfig
    from uniaudio.pretrain.train import train

    return train(RunConfig.model_validate(config))


def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_the_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((folder / "run.yaml").read_text())
    config["optim"]["lr"] = 1e25
    config["parallel"] = {"data_parallel_size": 2}
    config["train"] |= {"output_dir": str(folder / "diverged"), "log_every": 3}
    with pytest.raises(AssertionError, match=r"NonFiniteLoss: step \d+: .* not finite.*documents .*clip-0000.*remedy"):
        run_ranks(2, folder / "results", train_rank, config=config)
    assert not list((folder / "diverged" / "checkpoints").glob("step-*"))
