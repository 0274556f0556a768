"""Where this process stands in world = tensor x data x pipeline, and the process groups behind it.

Rank order: tensor fastest, then data, then pipeline; that of megatron-core ("tp-cp-ep-dp-pp") and of DeepSpeed's
PipeModelDataParallelTopology alike, so the groups of both hold the same ranks.
"""

import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from uniaudio.configs.parallel import ParallelConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.parallel.tensor import TensorParallel

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Layout:
    """One process: ranks, sizes and groups. A group is None where its size is 1 and nothing was initialised."""

    rank: int = 0
    world_size: int = 1
    tensor: TensorParallel = field(default_factory=TensorParallel)
    data_parallel_rank: int = 0
    data_parallel_size: int = 1
    data_parallel_group: dist.ProcessGroup | None = None
    pipeline_rank: int = 0
    pipeline_size: int = 1

    @property
    def is_first_stage(self) -> bool:
        """This process holds the embedding."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """This process computes the loss."""
        return self.pipeline_rank == self.pipeline_size - 1


def coordinates(rank: int, parallel: ParallelConfig) -> tuple[int, int, int]:
    """(tensor rank, data rank, pipeline rank) of a global rank."""
    rest, tensor_rank = divmod(rank, parallel.tensor_parallel_size)
    pipeline_rank, data_rank = divmod(rest, parallel.data_parallel_size)
    return tensor_rank, data_rank, pipeline_rank


def _check_world(parallel: ParallelConfig, launched: int) -> None:
    if launched == parallel.world_size:
        return
    sizes = (parallel.tensor_parallel_size, parallel.data_parallel_size, parallel.pipeline_parallel_size)
    product = "{} (tensor) x {} (data) x {} (pipeline)".format(*sizes)
    raise UserError(
        "processes started do not match parallel.{tensor,data,pipeline}_parallel_size",
        seen=f"WORLD_SIZE={launched}",
        allowed=f"{parallel.world_size} = {product}",
        remedy=f"start {parallel.world_size} processes, or change a factor",
    )


def _backend(parallel: ParallelConfig, device: torch.device) -> str:
    if parallel.backend != "auto":
        return parallel.backend
    return "nccl" if device.type == "cuda" else "gloo"


def initialize(parallel: ParallelConfig, device: torch.device) -> Layout:
    """Joins the process groups that `torchrun`'s environment describes, and tells where this process stands.

    One process initialises nothing. A second call in the same process returns the layout again. Raises UserError
    where the number of processes is not the product of the parallel sizes.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    _check_world(parallel, launched)
    if launched == 1:
        return Layout()
    from uniaudio.pretrain.parallel import groups

    if device.type == "cuda":
        torch.cuda.set_device(device if device.index is not None else int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group(_backend(parallel, device), timeout=TIMEOUT)
    tensor_group, data_group = groups.initialize(parallel)
    rank = dist.get_rank()
    tensor_rank, data_rank, pipeline_rank = coordinates(rank, parallel)
    return Layout(
        rank=rank,
        world_size=launched,
        tensor=TensorParallel(parallel.tensor_parallel_size, tensor_rank, tensor_group if parallel.tensor_parallel_size > 1 else None),
        data_parallel_rank=data_rank,
        data_parallel_size=parallel.data_parallel_size,
        data_parallel_group=data_group,
        pipeline_rank=pipeline_rank,
        pipeline_size=parallel.pipeline_parallel_size,
    )


def shutdown() -> None:
    """Leaves the process groups, if there are any."""
    if not dist.is_initialized():
        return
    from uniaudio.pretrain.parallel import groups

    groups.destroy()
    dist.destroy_process_group()
