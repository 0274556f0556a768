"""How the model and the batch are spread over processes."""

from typing import Literal

from pydantic import Field

from uniaudio.configs.section import Section


class ParallelConfig(Section):
    """world size = tensor x pipeline x data; every factor is at least 1."""

    tensor_parallel_size: int = Field(1, ge=1)
    pipeline_parallel_size: int = Field(1, ge=1)
    data_parallel_size: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    backend: Literal["auto", "gloo", "nccl"] = Field("auto", description="auto: nccl on CUDA, gloo on CPU")
    recompute: Literal["none", "full"] = Field("none", description="recompute each block's activations in the backward pass")

    @property
    def world_size(self) -> int:
        """Processes of the whole layout."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size
