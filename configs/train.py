"""Length, precision, outputs of a training."""

from typing import Literal

from pydantic import Field

from uniaudio.configs.section import LARGEST_SEED, Section


class TrainConfig(Section):
    """Everything a run writes lies below `output_dir`."""

    output_dir: str
    steps: int = Field(..., ge=1)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    fp8: bool = Field(
        False, description="products of the blocks with 8-bit operands (Hopper and later; the rest stays bf16; docs/training.md)"
    )
    cuda_graphs: Literal["auto", True, False] = Field(
        "auto",
        description="the layers as CUDA graphs, so that the host does not bound the step; auto: where it is possible (docs/training.md)",
    )
    log_every: int = Field(10, ge=1)
    evaluate_every: int = Field(0, ge=0, description="0: only at the end")
    evaluate_batches: int = Field(8, ge=1, description="micro-batches of held-out clips of one evaluation")
    save_every: int = Field(1000, ge=1)
    keep_checkpoints: int = Field(3, ge=1, description="the newest stay")
    keep_every: int = Field(0, ge=0, description="checkpoints of a multiple of so many steps stay for good; 0: none")
    on_non_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="a loss or gradient that is not finite never changes the weights; skip: go on with the next batch, up to 10 in a row",
    )
    spike_deviations: float = Field(
        0.0,
        ge=0,
        description="a loss so many standard deviations above the recent ones: back to the last checkpoint, without the batches since",
    )
    profile: bool = Field(False, description="write a trace of three steps below output_dir/profile")
    resume: bool = Field(True, description="continue from the newest checkpoint of output_dir where there is one")
    init_from: str | None = Field(
        None, min_length=1, description="checkpoint or export whose weights to start from; the vocabulary may be larger"
    )
    experiment: str = Field("uniaudio", min_length=1, description="of MLflow")
    threads: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="CPU threads of a process; default 1 beside a GPU (all for an optimizer on the host), else cores / processes",
    )
