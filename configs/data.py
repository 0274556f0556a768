"""From shards to batches: tasks, mix, packing."""

from typing import Literal

from pydantic import Field, model_validator

from uniaudio.configs.section import Section


class MixConfig(Section):
    """How often each task is drawn: proportional to (its hours)^alpha, unless weights are given."""

    alpha: float = Field(1.0, ge=0, le=1, description="1: every clip once an epoch for each task it serves")
    weights: dict[str, float] = Field(
        default_factory=dict, description="task -> share, in place of its (hours)^alpha share of 1; 0 switches the task off"
    )

    @model_validator(mode="after")
    def _not_negative(self) -> "MixConfig":
        for task, weight in self.weights.items():
            if weight < 0:
                raise ValueError(f"weights.{task} is {weight}; a share is 0 or more")
        return self


class DataConfig(Section):
    """Which shards, which tasks, and the fixed shape of a micro-batch."""

    shards: str = Field(..., description="folder of shards, holding train-*.tar and valid-*.tar")
    tasks: tuple[str, ...] = Field(..., min_length=1, description="names of tasks of configs/tasks, or paths to YAML files of that form")
    frames_per_row: int = Field(1024, ge=16, description="T of a pack: one row of a micro-batch is this many frames")
    rows_per_micro_batch: int = Field(8, ge=1, description="B of a micro-batch")
    max_documents_per_row: int = Field(64, ge=2, description="fixed size of the boundary tensor; one entry is kept for the padding")
    max_text_states_per_row: int = Field(512, ge=1, description="fixed number of continuous text positions of a row")
    shards_per_block: int = Field(
        16, ge=1, description="shards shuffled together and read together: larger mixes better, smaller reads longer runs"
    )
    prompt_seconds: float = Field(3.0, gt=0, description="length of a speaker prompt (paper: 3 s)")
    too_long: Literal["cut", "skip"] = Field("cut", description="a target longer than a row: cut its end, or leave the clip out")
    mix: MixConfig = MixConfig()
    seed: int = Field(0, ge=0)
    workers: int = Field(0, ge=0, description="loader processes of a rank; the batches do not depend on it")
    verify: bool = Field(True, description="hash each shard the first time a process opens it, and compare with its sidecar")
    loss_on: Literal["target", "all"] = Field("target", description="what the loss counts: the target and its end, or every frame")
