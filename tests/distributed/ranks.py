"""Ranks of a small world as forked processes: torch, DeepSpeed and megatron-core are imported once, in the fork server."""

import gc
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uniaudio.pretrain.launch import free_port

PRELOAD = [
    "deepspeed",
    "deepspeed.pipe",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "mlflow",
    "uniaudio.pretrain.engine",
    "uniaudio.pretrain.parallel.megatron",
    "uniaudio.pretrain.parallel.groups",
]


def _context() -> Any:
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    server = multiprocessing.forkserver._forkserver
    if server._preload_modules is not PRELOAD:
        # A process has one fork server; in one that a test of the farm started, each rank would do all of these imports itself.
        if server._forkserver_pid is not None:
            os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()
        context.set_forkserver_preload(PRELOAD)
    return context


def _rank(rank: int, world_size: int, port: int, folder: str, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    import torch

    gc.freeze()  # DeepSpeed collects garbage six times and more: not among all that the imports left
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    try:
        result = {"value": function(**arguments)}
    except Exception:  # noqa: BLE001 - goes to the test, which raises it
        result = {"error": traceback.format_exc()}
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    os._exit(0)  # process groups of a world that may have failed are not waited for


def run_ranks(world_size: int, folder: Path, function: Callable[..., Any], *, timeout: float = 240, **arguments: Any) -> list[Any]:
    """`function(**arguments)` in `world_size` processes; its JSON results by rank. AssertionError with the traceback of one that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    context = _context()
    processes = [
        context.Process(target=_rank, args=(rank, world_size, port, str(folder), function, arguments)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    results = {rank: json.loads(path.read_text()) for rank in range(world_size) if (path := folder / f"{rank}.json").exists()}
    errors = [result["error"] for result in results.values() if "error" in result]
    assert not errors, errors[0]
    assert not hung, f"ranks {hung} did not end"
    return [results[rank]["value"] for rank in range(world_size)]
