"""The watchdog's judgement on its own, and two processes of which one dies, stops or falls behind."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from uniaudio.pretrain import watchdog
from uniaudio.pretrain.launch import free_port
from uniaudio.pretrain.watchdog import SILENT_SECONDS, Sign, Signs


def sign(rank: int, beat: int, progress: int, phase: str = "step", own: float | None = None) -> Sign:
    return Sign(rank, host=f"node-{rank}", pid=100 + rank, beat=beat, step=7, phase=phase, progress=progress, own=own)


def test_a_rank_without_signs_is_named_with_its_host() -> None:
    signs = Signs(now=0.0)
    signs.update([sign(0, 1, 5), sign(1, 1, 5)], now=0.0)
    signs.update([sign(0, 9, 6), sign(1, 1, 5)], now=SILENT_SECONDS + 1)
    assert [str(one) for one in signs.silent(SILENT_SECONDS + 1)] == ["rank 1 (host node-1, pid 101; step 7, step)"]


def test_those_behind_are_who_the_others_wait_for() -> None:
    signs = Signs(now=0.0)
    signs.update([sign(0, 1, 6), sign(1, 1, 5, "data"), sign(2, 1, 6)], now=0.0)
    assert [one.rank for one in signs.behind()] == [1]
    signs.update([sign(0, 2, 6), sign(1, 2, 5, "data"), sign(2, 2, 6)], now=40.0)
    assert signs.standing(40.0) == 40.0, "signs of life are no progress"
    signs.update([sign(0, 3, 6), sign(1, 3, 6), sign(2, 3, 6)], now=41.0)
    assert signs.standing(41.0) == 0.0 and signs.behind() == [], "all at the same place: nobody is behind"


def test_a_slow_rank_is_far_above_the_median() -> None:
    signs = Signs(now=0.0)
    signs.update([sign(rank, 1, 1, own=0.2 if rank != 2 else 0.35) for rank in range(4)], now=0.0)
    assert [(one.rank, median) for one, median in signs.slow()] == [(2, 0.2)]


def _rank(rank: int, port: int, log: str) -> None:
    import logging

    import torch.distributed as dist

    logging.getLogger("uniaudio").addHandler(logging.FileHandler(log))
    watchdog.BEAT_SECONDS, watchdog.SILENT_SECONDS, watchdog.WAITING_SECONDS = 0.2, 2.0, 2.0
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    dog = watchdog.Watchdog(rank, 2)
    dog.enter(3, "data")
    if rank == 0:
        dog.enter(3, "step")
    Path(f"{log}.ready").touch()
    time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "frozen"])
@pytest.mark.parametrize("victim", [0, 1])
def test_the_survivor_names_the_other_and_ends_so_that_it_is_started_again(number: int, victim: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    port, logs = free_port(), [tmp_path / f"{rank}.log" for rank in range(2)]
    ranks = [context.Process(target=_rank, args=(rank, port, str(logs[rank])), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + 60
    while not all(Path(f"{log}.ready").exists() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(ranks[victim].pid, number)
    survivor = ranks[1 - victim]
    survivor.join(40)
    os.kill(ranks[victim].pid, signal.SIGKILL)
    text = logs[1 - victim].read_text()
    assert survivor.exitcode == 69, text
    named = f"no sign of life for 2 s, dead or frozen: rank {victim} (host "
    gone = "the store of rank 0 does not answer"
    assert named in text or (victim == 0 and gone in text)
    assert "start again: it resumes from the last checkpoint" in text


def test_who_holds_the_others_up_is_said_within_the_minute(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    port, logs = free_port(), [tmp_path / f"{rank}.log" for rank in range(2)]
    ranks = [context.Process(target=_rank, args=(rank, port, str(logs[rank])), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + 60
    while "wait for" not in (logs[0].read_text() if logs[0].exists() else "") and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in ranks:
        process.kill()
    assert "nobody got on for 2 s; the others wait for rank 1 (host" in logs[0].read_text()
    assert "step 3, data)" in logs[0].read_text()


def test_signs_cross_as_json() -> None:
    assert json.loads(json.dumps(sign(1, 2, 3).__dict__))["phase"] == "step"
