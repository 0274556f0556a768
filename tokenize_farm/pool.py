"""The farm's Ray actors: as many as there is work and room for, replaced when they die. Starts Ray itself where no cluster is given.

An actor that the cluster has no room for waits in Ray's queue (where an autoscaler sees it) and gets no work until it runs; so a farm grows
as nodes come, goes on with fewer as they leave, and lets its actors go one by one when the work runs out.
"""

import os
from math import ceil
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from uniaudio.configs.farm import FarmConfig
from uniaudio.errors import Unavailable, UserError
from uniaudio.log import get_logger

logger = get_logger("farm")

_OBJECT_STORE_BYTES = 128 * 2**20  # without a decoding stage nothing but lines and sidecars crosses it
_START_TRIES = 3
_CALLS_AT_ONCE = 2  # on a worker: one computes, the other publishes
_CALLS_AT_ONCE_DECODED = 5  # one computes, one waits, three publish: a disk or a store may take as long as three units for one
_DEATHS_AT_START = 5  # of workers, one after another: no more are tried then


class Pool:
    """Actors of `kind` (`UnitWorker`), each with up to `calls_at_once` calls.

    Args:
        jobs: most actors that can be of use.

    Raises:
        UserError: no cluster at `ray_address`.
    """

    def __init__(self, config: FarmConfig, versions: dict[str, str], *, jobs: int, kind: type) -> None:
        self._config, self._versions = config, versions
        cores, self.decoders = _connect(config, jobs)
        room = int((cores - bool(self.decoders)) / config.cpus_per_worker)  # a core at least is left to those who decode
        if self.decoders and not room:
            remedy = "give Ray more cores, or set decode_workers=0: the workers then decode for themselves"
            raise UserError("no core is left to decode with", seen=f"{cores} cores, decode_workers {self.decoders}", remedy=remedy)
        wanted = config.workers or int((cores - self.decoders) / config.cpus_per_worker)
        self.most = max(1, min(jobs, wanted, room) if self.decoders else min(jobs, wanted))
        self.calls_at_once = _CALLS_AT_ONCE_DECODED if self.decoders else _CALLS_AT_ONCE
        needs = {"num_cpus": config.cpus_per_worker, "num_gpus": config.gpus_per_worker}
        self._kind = ray.remote(kind).options(**needs, max_restarts=0, max_concurrency=self.calls_at_once + 1)
        self.restarts = self._deaths_at_start = 0
        self._starting: dict[Any, Any] = {}  # reference of `ready` -> actor
        self._calls: dict[Any, int] = {}  # running actor -> calls in flight
        self._names: dict[Any, str] = {}  # of every actor that came up: where it runs
        self._alone: set[Any] = set()
        self.grow(self.most)

    @property
    def running(self) -> int:
        """Actors that have answered."""
        return len(self._calls)

    @property
    def starting(self) -> list[Any]:
        """References to wait on beside those of the calls: an actor that has come up."""
        return list(self._starting)

    def grow(self, wanted: int) -> None:
        """Asks for actors until there are `wanted` of them, at most `most`."""
        for _ in range(min(wanted, self.most) - len(self._calls) - len(self._starting)):
            actor = self._kind.remote(self._config, self._versions)
            self._starting[actor.ready.remote()] = actor

    def came_up(self, reference: Any) -> None:
        """Takes an actor into work.

        Raises:
            UserError: it could not be made (a missing file, another version of a tokenizer, no such device), or one after another dies.
        """
        actor = self._starting.pop(reference)
        try:
            self._names[actor] = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                raise UserError("a worker could not start", seen=str(error).strip().splitlines()[-1]) from error
            self._died_at_start(error)
            return
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        self._calls[actor] = self._deaths_at_start = 0

    def _died_at_start(self, error: Exception) -> None:
        """Its node went, or there is no room for it: one more is tried, unless several died in a row."""
        self.restarts += 1
        self._deaths_at_start += 1
        if self._deaths_at_start < _DEATHS_AT_START:
            return
        told = f"{_DEATHS_AT_START} workers died while they started"
        if not self._calls:
            remedy = "look for the reason in Ray's logs: too little memory for the models of so many workers, or a library that crashes"
            raise UserError(told, seen=" ".join(str(error).split())[:200], remedy=remedy) from error
        self.most, self._deaths_at_start = len(self._calls), 0
        logger.warning("%s; the farm goes on with the %d that run", told, self.most)

    def name(self, actor: Any) -> str:
        """Host and process of an actor that came up."""
        return self._names[actor]

    def free(self, *, alone: bool = False) -> Any | None:
        """The actor with the fewest calls that may take one more; with `alone`, one that has none."""
        open_to_work = [actor for actor in self._calls if actor not in self._alone]
        actor = min(open_to_work, key=self._calls.__getitem__, default=None)
        return actor if actor is not None and self._calls[actor] < (1 if alone else self.calls_at_once) else None

    def took(self, actor: Any, *, alone: bool) -> None:
        """Counts a call."""
        self._calls[actor] += 1
        if alone:
            self._alone.add(actor)

    def ended(self, actor: Any) -> None:
        """A call came back (or went down with its actor)."""
        self._alone.discard(actor)
        if actor in self._calls:
            self._calls[actor] -= 1

    def died(self, actor: Any) -> None:
        """Lets an actor go that died or can no longer be reached; `grow` makes another."""
        if self._calls.pop(actor, None) is not None:
            ray.kill(actor)
            self.restarts += 1

    def shrink(self) -> None:
        """Gives back the actors that have nothing to do: called when no work is waiting."""
        for actor in [actor for actor, calls in self._calls.items() if not calls]:
            del self._calls[actor]
            ray.kill(actor)
        for actor in self._starting.values():
            ray.kill(actor)
        self._starting.clear()

    def close(self) -> None:
        """Ends the actors; on a shared cluster, them alone."""
        ray.shutdown()


def decoders(config: FarmConfig, cores: int) -> int:
    """CPU processes of the decoding stage: as configured; else none (each worker decodes for itself), or beside GPUs all spare cores."""
    if config.decode_workers is not None:
        return config.decode_workers
    if not config.gpus_per_worker:
        return 0
    return max(1, int(cores - (config.workers or 1) * config.cpus_per_worker))


def _connect(config: FarmConfig, jobs: int) -> tuple[int, int]:
    """Connects to the cluster, or starts Ray on this machine; returns the cores that Ray has, and how many processes decode.

    Raises:
        UserError: no cluster there, or more GPUs a worker than this machine has (a cluster may grow).
    """
    if config.ray_address:
        try:
            ray.init(address=config.ray_address, log_to_driver=False, logging_level="ERROR")
        except ConnectionError as error:
            remedy = "start a cluster, or leave ray_address out"
            raise Unavailable("no Ray cluster at this address", seen=config.ray_address, remedy=remedy) from error
        cores = int(ray.cluster_resources().get("CPU", 0))
        return cores, decoders(config, cores)
    cores = len(os.sched_getaffinity(0))
    staged = decoders(config, cores)
    workers = max(1, min(jobs, config.workers or int(cores / config.cpus_per_worker)))
    if config.dashboard:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # its pages ask for the token of `ray get-auth-token`
    start_ray(
        num_cpus=max(1, ceil(workers * config.cpus_per_worker) + staged),
        include_dashboard=config.dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=None if staged else _OBJECT_STORE_BYTES,
    )
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0)
    if "CPU" in resources and config.gpus_per_worker > gpus:  # without: the node has not reported yet
        remedy = "gpus_per_worker=0 tokenizes on CPUs; or give the ray_address of a cluster with GPUs"
        raise UserError(
            "gpus_per_worker: this machine has too few GPUs", seen=f"{config.gpus_per_worker:g}", allowed=f"{gpus:g}", remedy=remedy
        )
    return cores, staged


def start_ray(**options: Any) -> None:
    """Ray on this machine. It gives itself 30 s to come up, too few on a loaded machine: so it gets three times.

    Raises:
        UserError: it did not come up.
    """
    for tries_left in reversed(range(_START_TRIES)):
        try:
            ray.init(address="local", log_to_driver=False, logging_level="ERROR", **options)
            return
        except Exception as error:  # a bare Exception is what it raises
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not tries_left:
                remedy = "look for other work on this machine, then run the same command again"
                raise Unavailable("Ray did not start on this machine", seen=f"{_START_TRIES} tries of 30 s", remedy=remedy) from error
