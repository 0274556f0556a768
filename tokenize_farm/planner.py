"""What tokenizing so many hours takes, worked out from a farm that ran on a little of them: a measured minute, multiplied.

The rates are those of `farm.json`: seconds of each step and bytes of shards per second of audio. A step of a tokenizer counts for a GPU
where the farm gave its workers one, everything else for a core. Nothing is assumed but that more cores and GPUs do more at once; what the
trial's machine, file formats and lengths of clips were, is in its rates.
"""

from dataclasses import dataclass
from typing import Any

from uniaudio.errors import UserError

_FILES_A_SHARD = 3  # tar, index, sidecar
_LEAST_SECONDS = 30.0  # of audio in a trial, below which start-up decides the rates


@dataclass(frozen=True)
class Rates:
    """Per second of audio: seconds of each step on a core and on a GPU, bytes of shards; and what an average clip is."""

    core_seconds: dict[str, float]
    gpu_seconds: dict[str, float]
    shard_bytes: float
    clip_seconds: float
    clips_a_shard: float

    @classmethod
    def of(cls, farm: dict[str, Any]) -> "Rates":
        """From the content of a `farm.json`.

        Raises:
            UserError: no finished work in it, or too little to tell.
        """
        work, totals = farm.get("last_work", {}), farm.get("totals", {})
        audio = float(work.get("audio_seconds", 0.0))
        if audio < _LEAST_SECONDS or not totals.get("clips"):
            raise UserError(
                "this farm did too little to plan from",
                seen=f"{audio:g} s of audio in its last work",
                allowed=f"at least {_LEAST_SECONDS:g} s",
                remedy="run it on some minutes of the corpus, into a folder of its own",
            )
        steps = {step: seconds / audio for step, seconds in work["worker_seconds_by_step"].items()}
        on_gpu = {step for step in steps if ":" in step} if farm.get("gpus_per_worker") else set()
        return cls(
            core_seconds={step: rate for step, rate in steps.items() if step not in on_gpu},
            gpu_seconds={step: rate for step, rate in steps.items() if step in on_gpu},
            shard_bytes=totals["tar_bytes"] / totals["audio_seconds"],
            clip_seconds=totals["audio_seconds"] / totals["clips"],
            clips_a_shard=totals["clips"] / totals["shards"],
        )


def plan_farm(
    rates: Rates,
    *,
    hours: float,
    cores: int,
    gpus: int = 0,
    clips_per_unit: int | None = None,
    clip_seconds: float | None = None,
    core_price: float = 0.0,
    gpu_price: float = 0.0,
) -> dict[str, Any]:
    """Core-hours, GPU-hours, wall hours and what bounds them, storage, objects, cost.

    Args:
        hours: of audio.
        clips_per_unit, clip_seconds: of the corpus, where they differ from the trial's.
        core_price, gpu_price: money an hour.

    Raises:
        UserError: rates that need a GPU, and none to do it on.
    """
    core_hours, gpu_hours = hours * sum(rates.core_seconds.values()), hours * sum(rates.gpu_seconds.values())
    if gpu_hours and not gpus:
        raise UserError("the trial ran on a GPU, and the plan has none", seen="--gpus 0", remedy="say how many: --gpus 8")
    on_cores, on_gpus = core_hours / cores, gpu_hours / gpus if gpus else 0.0
    clips = hours * 3600 / (clip_seconds or rates.clip_seconds)
    shards = clips / (clips_per_unit or rates.clips_a_shard)
    wall = max(on_cores, on_gpus)
    return {
        "hours": hours,
        "clips": round(clips),
        "core_hours": round(core_hours, 1),
        "gpu_hours": round(gpu_hours, 1),
        "wall_hours": round(wall, 2),
        "bound_by": "GPUs" if on_gpus > on_cores else "cores",
        "core_hours_by_step": {step: round(hours * rate, 1) for step, rate in sorted(rates.core_seconds.items())},
        "gpu_hours_by_step": {step: round(hours * rate, 1) for step, rate in sorted(rates.gpu_seconds.items())},
        "storage_gb": round(hours * 3600 * rates.shard_bytes / 1e9, 1),
        "shards": round(shards),
        "objects": round(shards * _FILES_A_SHARD),
        "cost": round(wall * (cores * core_price + gpus * gpu_price), 2),
    }
