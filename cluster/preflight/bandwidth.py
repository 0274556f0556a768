"""Speeds that need torch: the matrix product of each rank's device, an all-reduce over all ranks, and each node against its neighbours.

The ranks are started as a training's would be (RANK, WORLD_SIZE, MASTER_ADDR and the like); without them one process looks at its devices.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from uniaudio.cluster.preflight.node import Report
from uniaudio.errors import Unavailable

_BYTES = {"cuda": 2**28, "cpu": 2**23}  # of a message
_SIDE = {"cuda": 8192, "cpu": 512}  # of the matrices
_TRIES = 5


def measure(report: Report, *, seconds: float) -> Report | None:
    """Fills in the speeds; returns the node's report on the first rank of each node, None on the others.

    Raises:
        Unavailable: the other ranks do not come within `seconds`.
    """
    device = _device()
    if "RANK" not in os.environ:
        devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if device.type == "cuda" else [device]
        report.tflops = [_tflops(each) for each in devices]
        return report
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=seconds))
    except dist.DistError as error:
        raise Unavailable("not all ranks have come", seen=f"{seconds:g} s waited", remedy="see which node has not reported") from error
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        dist.barrier()
        mine = (report.node, time.time(), _tflops(device))
        everyone: list[tuple[str, float, float]] = [mine] * world
        dist.all_gather_object(everyone, mine)
        nodes = list(dict.fromkeys(node for node, _, _ in everyone))
        leaders = [next(i for i, (node, _, _) in enumerate(everyone) if node == name) for name in nodes]
        bus = _all_reduce(device) if world > 1 else None
        pairs = _neighbours(device, leaders, rank)
        if rank not in leaders:
            return None
        report.clock_offset = mine[1] - everyone[0][1]
        report.tflops = [speed for node, _, speed in everyone if node == report.node]
        report.all_reduce_gb_per_second = bus
        report.pairs = {nodes[leaders.index(peer)]: speed for peer, speed in pairs.items()}
        return report
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _seconds(what: Callable[[], object], device: torch.device) -> float:
    """The best of some tries, after one that warms up."""
    best = float("inf")
    for number in range(_TRIES + 1):
        started = time.perf_counter()
        what()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            best = min(best, time.perf_counter() - started)
    return best


def _tflops(device: torch.device) -> float:
    """bf16 on a GPU, fp32 on a CPU."""
    side = _SIDE[device.type]
    x = torch.ones(side, side, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    return 2 * side**3 / _seconds(lambda: x @ x, device) / 1e12


def _all_reduce(device: torch.device) -> float:
    """Bus bandwidth in GB/s: what each rank must send and receive, 2 (n-1)/n of the message, over the time."""
    message = torch.ones(_BYTES[device.type] // 4, device=device)
    world = dist.get_world_size()
    return 2 * (world - 1) / world * _BYTES[device.type] / _seconds(lambda: dist.all_reduce(message), device) / 1e9


def _neighbours(device: torch.device, leaders: list[int], rank: int) -> dict[int, float]:
    """GB/s one way between the first ranks of neighbouring nodes, in two rounds so that each talks to one other at a time."""
    speeds: dict[int, float] = {}
    message = torch.ones(_BYTES[device.type] // 4, device=device)
    count = len(leaders)
    for first in (0, 1):
        for a, b in [(i, (i + 1) % count) for i in range(first, count, 2)] if count > 1 else []:
            peers = leaders[a], leaders[b]
            if rank in peers and a != b and peers[rank == peers[0]] not in speeds:
                speeds[peers[rank == peers[0]]] = _BYTES[device.type] / _seconds(partial(_send, message, *peers, rank), device) / 1e9
    dist.barrier()
    return speeds


def _send(message: torch.Tensor, source: int, target: int, rank: int) -> None:
    """There and back, half of the time each way."""
    half = message[: len(message) // 2]
    for sender, receiver in ((source, target), (target, source)):
        if rank == sender:
            dist.send(half, receiver)
        else:
            dist.recv(half, sender)
