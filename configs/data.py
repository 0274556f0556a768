"""From shards to batches: tasks, mix, packing."""

from typing import Literal

from pydantic import Field, model_validator

from uniaudio.configs.section import LARGEST_SEED, Section


class Shares(Section):
    """How often each task and each dataset is drawn."""

    alpha: float = Field(
        1.0, ge=0, le=1, description="a task's share is its hours to this power; 1: every clip once an epoch for each task"
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="task -> share, in place of its (hours)^alpha share of 1; 0 switches the task off"
    )
    datasets: dict[str, float] = Field(
        default_factory=dict,
        description="dataset (last part of its folder's name) -> how often its clips come beside those of others; default 1",
    )

    @model_validator(mode="after")
    def _not_negative(self) -> "Shares":
        for what, weights in (("weights", self.weights), ("datasets", self.datasets)):
            for name, weight in weights.items():
                if weight < 0:
                    raise ValueError(f"{what}.{name} is {weight}; a share is 0 or more")
        return self


class MixChange(Shares):
    """Shares that hold after a step; what it leaves out has its default, not what held before."""

    step: int = Field(..., ge=1, description="steps done when it begins to hold")


class MixConfig(Shares):
    """Shares from the start, and a curriculum: others from given steps on."""

    schedule: tuple[MixChange, ...] = Field((), description="changes, by ascending step; each begins an epoch of its own")

    @model_validator(mode="after")
    def _ascending(self) -> "MixConfig":
        steps = [change.step for change in self.schedule]
        if sorted(set(steps)) != steps:
            raise ValueError(f"schedule: steps must ascend; seen {steps}")
        return self

    @property
    def phases(self) -> tuple[tuple[int, Shares], ...]:
        """(steps done when it begins, shares), ascending from 0."""
        return ((0, self), *((change.step, change) for change in self.schedule))


class DataConfig(Section):
    """Which shards, which tasks, and the fixed shape of a micro-batch."""

    shards: str | tuple[str, ...] = Field(
        ..., description="folder of shards, holding train-*.tar and valid-*.tar: a path, or s3:// or http(s)://; several: one a dataset"
    )
    tasks: tuple[str, ...] = Field(..., min_length=1, description="names of tasks of configs/tasks, or paths to YAML files of that form")
    frames_per_row: int = Field(1024, ge=16, description="T of a pack: one row of a micro-batch is this many frames")
    rows_per_micro_batch: int = Field(8, ge=1, description="B of a micro-batch")
    max_documents_per_row: int = Field(64, ge=2, description="fixed size of the boundary tensor; one entry is kept for the padding")
    max_text_states_per_row: int = Field(512, ge=1, description="fixed number of continuous text positions of a row")
    shards_per_block: int = Field(
        16, ge=1, description="shards shuffled together and read together: larger mixes better, smaller reads longer runs"
    )
    prompt_seconds: float = Field(3.0, gt=0, description="length of a speaker prompt (paper: 3 s)")
    too_long: Literal["cut", "skip"] = Field("cut", description="a document longer than a row: cut the end of its audio, or leave it out")
    mix: MixConfig = MixConfig()
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    workers: int = Field(0, ge=0, description="loader processes of a rank; the batches do not depend on it")
    verify: bool = Field(True, description="hash each shard the first time a process opens it, and compare with its sidecar")
    bad_shards: Literal["stop", "skip"] = Field(
        "stop",
        description="a shard that is missing, cut short or changed: stop, or leave padding in the place of its documents and count them",
    )
    cache_dir: str = Field(
        "", description="where shards of s3:// and http:// are kept for a while; empty: uniaudio-shards in the temporary folder"
    )
    cache_gb: float = Field(50.0, gt=0, description="most that they take there; the longest unused go first")
    hide_history: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the target's frames that training hides from the frames behind them, so that the conditions are needed",
    )
    loss_on: Literal["target", "all"] = Field("target", description="what the loss counts: the target and its end, or every frame")

    @property
    def folders(self) -> tuple[str, ...]:
        """`shards` as a tuple."""
        return (self.shards,) if isinstance(self.shards, str) else self.shards
