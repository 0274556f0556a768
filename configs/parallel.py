"""How the model and the batch are spread over processes."""

from typing import Any, Literal

from pydantic import Field, model_validator

from uniaudio.configs.section import Section

Recompute = Literal["none", "selective", "full"]


class ParallelConfig(Section):
    """world size = tensor x pipeline x data; every factor is at least 1."""

    tensor_parallel_size: int = Field(1, ge=1)
    pipeline_parallel_size: int = Field(1, ge=1)
    data_parallel_size: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: bool = Field(
        False,
        description="fp32 weights and moments in the host's memory, updated by its cores (zero_stage 2 or 3): a step waits for them, and "
        "12 bytes a parameter less on the GPU",
    )
    backend: Literal["auto", "gloo", "nccl"] = Field("auto", description="auto: nccl on CUDA, gloo on CPU")
    recompute: Recompute = Field(
        "none",
        description="in the backward pass: selective computes the MLP's activation again (a quarter of the memory for about 1 % of the "
        "time), full the whole block from its input",
    )
    stage_bounds: tuple[int, ...] | None = Field(
        None,
        description="pipeline: the first layer of each stage, and the number of layers; from the operations of each layer unless given",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_retired_keys(cls, values: Any) -> Any:
        """`sequence_parallel` was a choice, and stands in the configs of checkpoints; now tensor parallelism always cuts the frames."""
        return {key: value for key, value in values.items() if key != "sequence_parallel"} if isinstance(values, dict) else values

    @property
    def world_size(self) -> int:
        """Processes of the whole layout."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size
