"""A signal that asks to stop before the first step: one line, an exit code for schedulers, all ranks alike."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from test_train_command import children_of, finish, folder, handles, is_alive, start, wait_for  # noqa: F401 - folder is a fixture

from uniaudio.pretrain.starting import SAVED, stop_at_once

LINE = "asked to stop before the first step: nothing was trained, and checkpoints are as they were; the same command starts again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_start_ends_a_training_with_one_line(folder: Path, number: int) -> None:  # noqa: F811
    process = start(folder, f"early-{number}")
    wait_for(lambda: handles(process.pid, signal.SIGHUP), process)  # the interpreter itself handles SIGINT from its first moment
    process.send_signal(number)
    before = time.monotonic()
    code, errors = finish(process)
    assert code == SAVED == 75 and time.monotonic() - before < 5, errors
    [line] = errors.strip().splitlines()
    assert LINE in line and "(exit code 75)" in line


def test_a_signal_as_the_outputs_are_opened_leaves_no_run_open_in_the_store(folder: Path) -> None:  # noqa: F811
    def status() -> str | None:
        with suppress(sqlite3.OperationalError), sqlite3.connect(f"file:{folder / 'mlflow.db'}?mode=ro", uri=True) as store:
            found = store.execute("select status from runs where name = 'opened'").fetchone()
            return found and found[0]
        return None

    process = start(folder, "opened", "train.steps=100000", "train.save_every=100000")
    wait_for(lambda: status() == "RUNNING", process)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 75, errors
    assert status() == "KILLED"


@pytest.mark.parametrize("first", [True, False], ids=["the command", "one rank"])
def test_all_ranks_end_where_one_command_started_them(folder: Path, first: bool) -> None:  # noqa: F811
    process = start(folder, f"early-ranks-{first}", "parallel.data_parallel_size=2")
    wait_for(lambda: len(children_of(process)) == 2, process)
    ranks = children_of(process)
    if not first:
        wait_for(lambda: all(handles(rank, signal.SIGTERM) for rank in ranks), process)
    os.kill(process.pid if first else ranks[1], signal.SIGTERM)
    before = time.monotonic()
    code, errors = finish(process)
    assert code == 75 and time.monotonic() - before < 10, errors
    assert len(errors.strip().splitlines()) == 1 and LINE in errors
    assert not any(map(is_alive, ranks))


def test_a_long_call_of_a_library_does_not_hold_the_end_up() -> None:
    """Where ranks wait for each other Python's handlers do not get their turn; here a mutex that is taken twice."""
    wait = "m = ctypes.create_string_buffer(64); lock = ctypes.CDLL(None).pthread_mutex_lock; lock(m); print(1, flush=True); lock(m)"
    script = f"import ctypes\nfrom uniaudio.pretrain.starting import stop_at_once\nwith stop_at_once(): {wait}\n"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    code, errors = finish(process)
    assert code == 75 and LINE in errors


def test_signals_are_others_to_handle_once_it_has_started() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_at_once() as started:
        started()
        os.kill(os.getpid(), signal.SIGTERM)  # would end this process
        time.sleep(0.1)
    assert signal.getsignal(signal.SIGTERM) is before, "only the command ignores them to its end"
