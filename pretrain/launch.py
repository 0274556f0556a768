"""Starting the processes of a layout: one plain command becomes one process a rank, or joins what torchrun or Slurm started.

Owns the environment of the ranks and their common death; knows nothing of models. The children run the same command line again with
RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, and die with the parent, however it dies.
"""

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from uniaudio.configs.parallel import ParallelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.lock import only_writer
from uniaudio.log import get_logger
from uniaudio.pretrain.starting import SAVED, say_nothing_trained
from uniaudio.signals import WITH_CTRL_C

PARENT = "UNIAUDIO_PARENT_PID"
FAULTS = "UNIAUDIO_FAULTS"
GRACE_SECONDS = 60.0  # for the others to end after one has saved
NOTICE_SECONDS = 1.0  # for the parent to see that a rank is dead
FAULT_SECONDS = 5.0  # for the others to report the same fault; more than that and they wait for the dead
_PR_SET_PDEATHSIG = 1
logger = get_logger("launch")


def describe(parallel: ParallelConfig) -> str:
    """Every factor of the layout with its product."""
    return (
        f"parallel.tensor_parallel_size {parallel.tensor_parallel_size} x parallel.pipeline_parallel_size {parallel.pipeline_parallel_size}"
        f" x parallel.data_parallel_size {parallel.data_parallel_size} = {parallel.world_size} processes"
    )


def is_started() -> bool:
    """True where a launcher (ours, torchrun, Slurm's srun of torchrun) has given this process its rank."""
    return "RANK" in os.environ


def join(parallel: ParallelConfig) -> None:
    """Checks the launcher's WORLD_SIZE against the layout; a process of one gets the environment of a world of one.

    Raises:
        UserError: printing every factor.
    """
    if not is_started():
        os.environ.update(_environment(0, 1, free_port()))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != parallel.world_size:
        raise UserError(
            "the launcher's WORLD_SIZE does not fit the layout",
            seen=f"WORLD_SIZE {world_size}",
            allowed=describe(parallel),
            remedy=f"start {parallel.world_size} processes, or set parallel.data_parallel_size so that the product is {world_size}",
        )


def require_devices(run: RunConfig) -> None:
    """Before spawning on this machine: UserError where CUDA is asked for and there are fewer GPUs than processes."""
    if run.train.device == "cpu":
        return
    from torch import cuda

    count = cuda.device_count()
    if count < run.parallel.world_size and (count or run.train.device == "cuda"):
        raise UserError(
            "this machine has fewer GPUs than the layout has processes",
            seen=f"{count} GPUs",
            allowed=describe(run.parallel),
            remedy="a smaller layout, train.device=cpu, or start it on all hosts with torchrun or uniaudio submit",
        )


def require_shards(run: RunConfig, remedy: str = "make it with `uniaudio tokenize FARM.yaml`") -> None:
    """Before long work: UserError where a folder of `data.shards` is missing, which every rank would find out only after its imports."""
    for place in run.data.folders:
        if "://" not in place and not Path(place).is_dir():
            raise UserError("data.shards: no such folder of shards", seen=place, remedy=remedy)


@contextmanager
def only_training(run: RunConfig) -> Iterator[None]:
    """One training an output folder: held by the command that starts the ranks, or by rank 0 of those that another launcher started.

    Raises:
        Unavailable: another training holds it.
    """
    if PARENT in os.environ or int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    with only_writer(Path(run.train.output_dir), what="training", key="train.output_dir"):
        yield


def die_with_parent() -> None:
    """A child of `spawn` asks the kernel to be killed when its parent dies, kill -9 included."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(1)


def report_fault(error: UserError) -> bool:
    """A child of `spawn` hands its error to the parent, which shows one for all ranks; False where there is no such parent."""
    folder = os.environ.get(FAULTS)
    if folder is None:
        return False
    Path(folder, f"{int(os.environ['RANK']):06d}.json").write_text(json.dumps({"message": str(error)}), encoding="utf-8")
    return True


def another_has_failed() -> bool:
    """A child of `spawn`, in a fault: has another rank reported one, or been killed? Then this one only lacks its partner.

    Waits a moment for the parent to notice: the connection breaks sooner.
    """
    folder = os.environ.get(FAULTS)
    deadline = time.monotonic() + NOTICE_SECONDS
    while folder is not None and time.monotonic() < deadline:
        if any(Path(folder).iterdir()):
            return True
        time.sleep(0.05)
    return False


def spawn(arguments: Sequence[str], world_size: int, *, started: Callable[[], None] = lambda: None) -> int:
    """Runs `python -m uniaudio ARGUMENTS` once a rank on this machine and waits; returns the exit code.

    The first process that fails ends the others. Signals that ask to stop are passed on, from when `started` is called.

    Raises:
        UserError: the one that a child reported.
    """
    with tempfile.TemporaryDirectory(prefix="uniaudio-") as faults:
        shared = {PARENT: str(os.getpid()), FAULTS: faults}
        port = free_port()
        command = [sys.executable, "-m", "uniaudio", *arguments]
        children: list[subprocess.Popen[bytes]] = []
        asked: list[int] = []

        def forward(number: int, frame: FrameType | None = None) -> None:
            asked.append(number)
            for child in children:
                child.send_signal(number)

        previous = {number: signal.signal(number, forward) for number in WITH_CTRL_C}
        started()
        grace = 0.0
        try:
            for rank in range(world_size):
                children.append(subprocess.Popen(command, env={**os.environ, **_environment(rank, world_size, port), **shared}))
            if asked:  # before there were children to tell
                forward(asked[0])
            rank, code = _wait(children)
            if code - 128 in asked:  # it died of the signal: it was not yet so far as to handle it
                say_nothing_trained()
                code = SAVED
            elif code > 128:
                Path(faults, "killed").touch()
                cause = signal.Signals(code - 128).name
                text = "rank %d (pid %d) was ended by %s, so all end; the same command goes on from the newest checkpoint"
                logger.error(text, rank, children[rank].pid, cause)
            if code == SAVED:  # a signal to one rank, during the start: the others wait for it
                forward(signal.SIGTERM)
            grace = GRACE_SECONDS if code == SAVED else FAULT_SECONDS
        finally:
            _end(children, grace)
            for number, handler in previous.items():
                signal.signal(number, handler)
        reported = sorted(Path(faults).glob("*.json"))
        if code and reported:
            raise UserError(json.loads(reported[0].read_text(encoding="utf-8"))["message"])
        return code


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # Tensor parallelism counts on launch order: what crosses ranks gets its multiprocessors before the product beside it.
        "CUDA_DEVICE_MAX_CONNECTIONS": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "1"),
    }
    if rank and "UNIAUDIO_LOG_LEVEL" not in os.environ:
        environment["UNIAUDIO_LOG_LEVEL"] = "WARNING"  # rank 0 speaks for all
    return environment


def cores_of_a_process() -> int:
    """The host's cores that this process may use, shared among the host's processes of the training."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def free_port() -> int:
    """A port that nobody listens on, outside those of outgoing connections: rank 0 binds it only seconds later."""
    lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, max(lowest_ephemeral, 20_000))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def _wait(children: list[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Until all have ended, or one has failed: its rank and exit code (128 + signal where a signal killed it)."""
    while True:
        codes = [child.poll() for child in children]
        failed = [(code, rank) for rank, code in enumerate(codes) if code]
        if failed:
            code, rank = min(failed)  # a signal's are negative: who was killed, before who noticed
            return rank, code if code > 0 else 128 - code
        if all(code == 0 for code in codes):
            return 0, 0
        time.sleep(0.05)


def _end(children: list[subprocess.Popen[bytes]], grace: float) -> None:
    """Gives the rest `grace` seconds to end by themselves (they saved together, or report the same fault), then kills them."""
    deadline = time.monotonic() + grace
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait()
