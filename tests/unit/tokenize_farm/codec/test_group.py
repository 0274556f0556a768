"""Codec training in two processes (gloo): the same weights in both, exact resume, one log."""

import json
import multiprocessing
import os
import socket

import pytest
import torch

from tests.unit.tokenize_farm.codec.test_train import CPU, config, pack
from uniaudio.configs.codec import CodecConfig
from uniaudio.tokenize_farm.codec.group import Group
from uniaudio.tokenize_farm.codec.train import CodecTraining

__all__ = ["pack"]  # a fixture


def _rank(rank: int, port: int, settings: list[tuple[CodecConfig, float | None]], queue: multiprocessing.Queue) -> None:
    """Trains by every (config, seconds of a clock that ticks at every look) in turn; sends steps and weights of each."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    group, ends = Group.from_environment(CPU), []
    for one, seconds in settings:
        ticks = iter(range(1000))
        training = CodecTraining(one, CPU, group=group, clock=lambda ticks=ticks: float(next(ticks)))
        training.run(max_seconds=seconds)
        group.collect(0)  # process 0 has written before the other one looks
        ends.append((training.step, {name: value.numpy() for name, value in training.work.codec.state_dict().items()}))
    group.close()
    queue.put((rank, ends))


def trained(*settings: tuple[CodecConfig, float | None]) -> list[list[tuple]]:
    """What each of two processes ends with."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")  # a fork of this process would inherit torch's threads
    context.set_forkserver_preload(["uniaudio.tokenize_farm.codec.train"])
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, port, list(settings), queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = sorted((queue.get(timeout=240) for _ in processes), key=lambda result: result[0])
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return [ends for _, ends in results]


@pytest.mark.slow
def test_two_processes_hold_the_same_weights_write_one_log_and_go_on_exactly(pack, tmp_path):
    settings = {"max_steps": 6, "discriminate_from": 0.3, "revive_below": 0.5}
    whole, halves = (config(pack, tmp_path / name, **settings) for name in ("whole", "halves"))
    first, second = trained((whole, None), (halves, 3), (halves, None))
    assert first[0][0] == first[2][0] == 6 and 0 < first[1][0] < 6
    for name, value in first[0][1].items():
        assert (value == first[2][1][name]).all(), name  # stopped and resumed
        assert "usage" in name or (value == second[0][1][name]).all(), name  # the other process
    assert [json.loads(line)["step"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()] == [2, 4, 6]
