"""Whether a run fits: its memory on a GPU, its time in the limit. The arithmetic is `uniaudio.configs.estimate`'s."""

from math import ceil

from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.estimate import memory_gb, seconds_per_step
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

_RESERVED_GB = 2.0  # CUDA's context, communication buffers, fragmentation: never there for the model
_START_SECONDS = 180.0  # of an attempt: queue's prolog, preflight, Python, rendezvous, loading a checkpoint


def check_memory(run: RunConfig, cluster: ClusterConfig) -> None:
    """Refuses what cannot fit on one GPU by an estimate from below."""
    memory = cluster.resources.gpu_memory_gb
    if memory is None or run.train.device == "cpu":
        return
    needed = memory_gb(run)
    if needed.total <= memory - _RESERVED_GB:
        return
    if needed.states > memory - _RESERVED_GB:
        remedy = "more parallel.tensor_parallel_size or pipeline_parallel_size, or a higher parallel.zero_stage"
    else:
        remedy = "smaller data.rows_per_micro_batch with more optim.gradient_accumulation, or parallel.recompute=full"
    raise UserError(
        f"the run does not fit on a GPU (precision {run.train.precision}, zero_stage {run.parallel.zero_stage},"
        f" rows_per_micro_batch {run.data.rows_per_micro_batch} x frames_per_row {run.data.frames_per_row})",
        seen=needed,
        allowed=f"resources.gpu_memory_gb {memory:g} less {_RESERVED_GB:g}",
        remedy=remedy,
    )


def hours(run: RunConfig, cluster: ClusterConfig) -> float | None:
    """GPU time of all steps on the clock; None where `resources.gpu` is not said."""
    gpu = cluster.resources.gpu
    if gpu is None or run.train.device == "cpu":
        return None
    return run.train.steps * seconds_per_step(run, gpu=gpu, mfu=cluster.resources.expected_mfu) / 3600


def attempts(run: RunConfig, cluster: ClusterConfig) -> int | None:
    """How often Slurm will start the run, each time for the whole limit; None where time or limit is not known."""
    needed, limit = hours(run, cluster), cluster.resources.time_limit_minutes
    if needed is None or limit is None:
        return None
    useful = 60 * limit - cluster.slurm.signal_seconds - _START_SECONDS if cluster.kind == "slurm" else 60 * limit - _START_SECONDS
    return ceil(3600 * needed / useful) if useful > 0 else None


def check_time(run: RunConfig, cluster: ClusterConfig) -> None:
    """Refuses a run that its limit would end, where nothing starts it again; and a limit that leaves no time for steps."""
    needed, limit, starts = hours(run, cluster), cluster.resources.time_limit_minutes, attempts(run, cluster)
    if needed is None or limit is None:
        return
    seen = f"about {needed:.1f} h: {run.train.steps} steps at {cluster.resources.expected_mfu:.0%} of {cluster.resources.gpu}'s peak"
    allowed = f"resources.time_limit_minutes {limit}"
    if starts is None:
        start = f"about {_START_SECONDS:.0f} s to start"
        raise UserError("resources.time_limit_minutes is over before the first step", seen=start, allowed=allowed, remedy="a longer limit")
    goes_on = cluster.kind == "slurm" and cluster.slurm.requeue
    if starts > 1 and not goes_on:
        remedy = "slurm.requeue: true" if cluster.kind == "slurm" else "a longer limit or none: nothing starts this job again"
        raise UserError("train.steps will not be done within the time limit", seen=seen, allowed=allowed, remedy=remedy)


def describe(run: RunConfig, cluster: ClusterConfig) -> list[str]:
    """What `submit` tells before it queues: memory, and time where they can be said."""
    lines = [] if run.train.device == "cpu" else [f"memory of a GPU, estimated from below: {memory_gb(run)}"]
    needed, starts = hours(run, cluster), attempts(run, cluster)
    if needed is not None:
        rate = f"at {cluster.resources.expected_mfu:.0%} of {cluster.resources.gpu}'s peak"
        lines.append(f"time: about {needed:.1f} h {rate}" + (f", {starts} attempts within the limit" if starts else ""))
    return lines
