"""A function over a list of jobs on Ray, results in the jobs' order: for work that is no farm (fitting units)."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from uniaudio.errors import Unavailable
from uniaudio.tokenize_farm.pool import start_ray

Job = TypeVar("Job")
Result = TypeVar("Result")
Mapper = Callable[[Callable[[Job], Result], Sequence[Job]], Iterator[Result]]

_AHEAD = 2  # tasks handed out for each worker
_RETRIES = 3  # of a task whose worker or node went


@contextmanager
def ray_map(workers: int, address: str | None = None) -> Iterator[Mapper]:
    """Yields `map`; jobs and results should be small: files carry what is large.

    Raises:
        Unavailable: no cluster at `address`, or Ray does not start here.
    """
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except ConnectionError as error:
            raise Unavailable("no Ray cluster at this address", seen=address, remedy="start a cluster, or leave it out") from error
    else:
        start_ray(num_cpus=workers, include_dashboard=False)
    try:
        yield lambda function, jobs: _map(function, jobs, workers)
    finally:
        ray.shutdown()


def _map(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    call, shared = ray.remote(_call).options(max_retries=_RETRIES), ray.put(function)
    waiting: deque[Any] = deque()
    for job in jobs:
        waiting.append(call.remote(shared, job))
        if len(waiting) > _AHEAD * workers:
            yield _result(waiting.popleft())
    while waiting:
        yield _result(waiting.popleft())


def _call(function: Callable[[Any], Any], job: Any) -> Any:
    return function(job)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
