"""What a farm made, added up from the sidecars of its shards, and how fast; the form of `farm.json`.

Totals come from published sidecars alone, so a rerun that finds everything published says the same.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.output import Output
from uniaudio.tokenize_farm.parts import FILE

MAX_LISTED = 1_000


@dataclass
class Work:
    """What this invocation did itself: wall seconds, and the workers' seconds by step (`audio:codec`, `decode`, ...)."""

    seconds: float = 0.0
    rows: int = 0
    clips: int = 0
    audio_seconds: float = 0.0
    units: int = 0
    units_skipped: int = 0
    workers: int = 0
    decoders: int = 0
    restarts: int = 0
    calls_at_once: int = 1  # of a worker: how many units it may be publishing
    seconds_by_step: dict[str, float] = field(default_factory=dict)

    def add(self, sidecar: Mapping, seconds_by_step: Mapping[str, float]) -> None:
        """Counts one published unit."""
        self.units += 1
        self.rows += sidecar["rows"]
        self.clips += sidecar["clips"]
        self.audio_seconds += sidecar["seconds"]
        for step, seconds in seconds_by_step.items():
            self.seconds_by_step[step] = self.seconds_by_step.get(step, 0.0) + seconds

    def busy(self) -> dict[str, float]:
        """How busy each stage is, 0 to 1: seconds of its steps over the wall seconds of its processes.

        Without decoders there is one stage, `workers`, and its steps stand for it: what they leave is waiting (for units, or for a core).
        With them, publishing is one of its own: it goes on beside the next units.
        """
        apart = {"decode": self.decoders, "write": self.workers * self.calls_at_once} if self.decoders else {}
        stages: dict[str, float] = {}
        for step, seconds in sorted(self.seconds_by_step.items()):
            stage = "workers" if self.decoders and step not in apart else step
            stages[stage] = stages.get(stage, 0.0) + seconds / max(self.seconds * apart.get(step, self.workers), 1e-9)
        return stages

    @property
    def bound_by(self) -> str:
        """The stage (without decoders: the step) that the others wait for: the busiest."""
        return max(stages, key=stages.__getitem__) if (stages := self.busy()) else "nothing yet"

    def as_json(self) -> dict[str, object]:
        """With the speeds: all workers together, and each step on one core."""
        return {
            "seconds": round(self.seconds, 2),
            "clips": self.clips,
            "audio_seconds": round(self.audio_seconds, 2),
            "times_real_time": round(self.audio_seconds / self.seconds, 2) if self.seconds else 0.0,
            "clips_per_second": round(self.clips / self.seconds, 2) if self.seconds else 0.0,
            "units": self.units,
            "units_skipped": self.units_skipped,
            "workers": self.workers,
            "decoders": self.decoders,
            "restarts": self.restarts,
            "busy": {stage: round(share, 3) for stage, share in self.busy().items()},
            "bound_by": self.bound_by,
            "worker_seconds_by_step": {step: round(seconds, 2) for step, seconds in sorted(self.seconds_by_step.items())},
            "times_real_time_by_step": {
                step: round(self.audio_seconds / seconds, 1) for step, seconds in sorted(self.seconds_by_step.items()) if seconds > 0
            },
        }


class Totals:
    """Clips, seconds, rows by view, drops by reason, added up shard by shard; no more memory for millions of shards than for one.

    rows: of the manifest. dropped: reason -> rows.
    """

    def __init__(self) -> None:
        self.rows = self.shards = self.frames = self.bytes = 0
        self.clips_by_kind, self.seconds_by_kind, self.rows_by_view = Counter[str](), Counter[str](), Counter[str]()
        self.clips_by_split, self.dropped = Counter[str](), Counter[str]()
        self._listed: list[dict[str, str]] = []

    @property
    def clips(self) -> int:
        return sum(self.clips_by_kind.values())

    @property
    def drops(self) -> int:
        return sum(self.dropped.values())

    @property
    def dropped_share(self) -> float:
        """Dropped rows against rows and clips that were kept, 0 to 1."""
        return self.drops / max(1, self.drops + self.clips)

    def add(self, sidecar: Mapping) -> None:
        """Counts one published shard."""
        self.shards += 1
        self.frames += sidecar["frames"]
        self.bytes += sidecar["tar_bytes"]
        self.clips_by_kind.update(sidecar["clips_by_kind"])
        self.seconds_by_kind.update(sidecar["seconds_by_kind"])
        self.rows_by_view.update(sidecar["rows_by_view"])
        self.clips_by_split[sidecar["shard"].split("-")[0]] += sidecar["clips"]
        self.rows += sidecar.get("rows", sidecar["clips"])
        for reason, ids in sidecar["dropped"].items():
            self.dropped[reason] += len(ids)
            for name in ids[: MAX_LISTED - len(self._listed)]:
                detail = sidecar.get("dropped_details", {}).get(name, "")
                self._listed.append({"id": name, "reason": reason, "detail": detail, "shard": sidecar["shard"]})

    def as_json(self) -> dict[str, Any]:
        """`dropped` lists the first MAX_LISTED of them; the sidecars list all."""
        return {
            "shards": self.shards,
            "clips": self.clips,
            "audio_seconds": round(sum(self.seconds_by_kind.values()), 2),
            "frames": self.frames,
            "tar_bytes": self.bytes,
            "clips_by_kind": dict(self.clips_by_kind),
            "seconds_by_kind": {kind: round(value, 2) for kind, value in self.seconds_by_kind.items()},
            "clips_by_split": dict(self.clips_by_split),
            "rows_by_view": dict(self.rows_by_view),
            "dropped_by_reason": dict(sorted(self.dropped.items())),
            "dropped": sorted(self._listed, key=lambda drop: (drop["shard"], drop["reason"], drop["id"])),
        }


def total(sidecars: Iterable[Mapping]) -> dict[str, Any]:
    """`Totals.as_json` over all sidecars."""
    totals = Totals()
    for sidecar in sidecars:
        totals.add(sidecar)
    return totals.as_json()


def read_farm_file(output: Output, name: str = FILE) -> dict:
    """The `farm.json` of an output (or of one part), empty where there is none yet.

    Raises:
        UserError: it is not JSON.
    """
    data = output.read(name)
    if data is None:
        return {}
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{output.address}/{name} is not JSON", seen=error, remedy="delete it; the farm writes it again") from error


def write_farm_file(output: Output, content: Mapping[str, object], name: str = FILE) -> str:
    """Publishes `farm.json` (or that of one part) and returns its text.

    Raises:
        UserError: the output cannot be written (a full disk, rights, a store that stays away).
    """
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        output.put(name, text.encode())
    except OSError as error:
        remedy = "free space or correct the folder's rights, then run the same command again"
        raise UserError(f"{output.address}/{name} could not be written", seen=error, remedy=remedy) from error
    return text
