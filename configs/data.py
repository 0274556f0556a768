"""From shards to batches: tasks, mix, packing."""

from typing import Literal

from pydantic import Field

from uniaudio.configs.section import Section


class MixConfig(Section):
    """How often each task is drawn: proportional to (its hours)^alpha, unless weights are given."""

    alpha: float = Field(1.0, ge=0, le=1)
    weights: dict[str, float] = Field(default_factory=dict, description="task -> weight; overrides alpha for the tasks named")


class DataConfig(Section):
    """Which shards, which tasks, and the fixed shape of a micro-batch."""

    shards: str = Field(..., description="folder of shards, holding train-*.tar and valid-*.tar")
    tasks: tuple[str, ...] = Field(..., min_length=1, description="names of tasks of configs/tasks, or paths to YAML files of that form")
    frames_per_row: int = Field(1024, ge=16, description="T of a pack: one row of a micro-batch is this many frames")
    rows_per_micro_batch: int = Field(8, ge=1, description="B of a micro-batch")
    max_documents_per_row: int = Field(64, ge=1, description="fixed size of the boundary tensor")
    max_text_states_per_row: int = Field(512, ge=1, description="fixed number of continuous text positions of a row")
    prompt_seconds: float = Field(3.0, gt=0, description="length of a speaker prompt (paper: 3 s)")
    too_long: Literal["cut", "skip"] = Field("cut", description="a target longer than a row: cut its end, or leave the clip out")
    mix: MixConfig = MixConfig()
    seed: int = Field(0, ge=0)
    workers: int = Field(0, ge=0, description="loader processes of a rank; the batches do not depend on it")
    loss_on: Literal["target", "all"] = "target"
