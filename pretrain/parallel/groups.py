"""megatron-core's process groups, and the `mpu` object through which DeepSpeed reads them."""

import warnings
from typing import Any

import torch.distributed as dist

with warnings.catch_warnings():
    # It warns that Transformer Engine and Apex are missing; process groups need neither.
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state

from uniaudio.configs.parallel import ParallelConfig


def initialize(parallel: ParallelConfig) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Makes the groups once; returns this process's tensor-parallel and data-parallel group.

    Raises ValueError where they were already made for other sizes.
    """
    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_parallel_size,
            create_gloo_process_groups=False,
        )
    made = (parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_pipeline_model_parallel_world_size())
    asked = (parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
    if made != asked:
        raise ValueError(f"process groups exist already for (tensor, pipeline) sizes {made} | asked: {asked} | call layout.shutdown first")
    return parallel_state.get_tensor_model_parallel_group(), parallel_state.get_data_parallel_group()


def destroy() -> None:
    """Forgets megatron-core's groups."""
    parallel_state.destroy_model_parallel()


class DeepSpeedGroups:
    """The `mpu` of `deepspeed.initialize`: parallel_state plus the two methods that it lacks (deepspeed 0.19)."""

    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_model_parallel_src_rank = staticmethod(parallel_state.get_tensor_model_parallel_src_rank)

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)
