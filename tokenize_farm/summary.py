"""What a farm made, added up from the sidecars of its shards, and how fast; the form of `farm.json`.

Totals come from published sidecars alone, so a rerun that finds everything published says the same.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniaudio.atomic import publish_bytes
from uniaudio.errors import UserError

FILE = "farm.json"


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
    restarts: int = 0
    seconds_by_step: dict[str, float] = field(default_factory=dict)

    def add(self, sidecar: Mapping, seconds_by_step: Mapping[str, float]) -> None:
        """Counts one published unit."""
        self.units += 1
        self.rows += sidecar["rows"]
        self.clips += sidecar["clips"]
        self.audio_seconds += sidecar["seconds"]
        for step, seconds in seconds_by_step.items():
            self.seconds_by_step[step] = self.seconds_by_step.get(step, 0.0) + seconds

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
            "restarts": self.restarts,
            "worker_seconds_by_step": {step: round(seconds, 2) for step, seconds in sorted(self.seconds_by_step.items())},
            "times_real_time_by_step": {
                step: round(self.audio_seconds / seconds, 1) for step, seconds in sorted(self.seconds_by_step.items()) if seconds > 0
            },
        }


def total(sidecars: Iterable[Mapping]) -> dict[str, Any]:
    """Clips, seconds, rows by view, drops by reason over all shards, and by split and kind."""
    clips, seconds, rows = Counter[str](), Counter[str](), Counter[str]()
    splits, dropped = Counter[str](), Counter[str]()
    drops: list[dict[str, str]] = []
    shards = frames = size = 0
    for sidecar in sidecars:
        shards, frames, size = shards + 1, frames + sidecar["frames"], size + sidecar["tar_bytes"]
        clips.update(sidecar["clips_by_kind"])
        seconds.update(sidecar["seconds_by_kind"])
        rows.update(sidecar["rows_by_view"])
        splits[sidecar["shard"].split("-")[0]] += sidecar["clips"]
        for reason, ids in sidecar["dropped"].items():
            dropped[reason] += len(ids)
            drops += [{"id": name, "reason": reason, "detail": sidecar.get("dropped_details", {}).get(name, "")} for name in ids]
    return {
        "shards": shards,
        "clips": sum(clips.values()),
        "audio_seconds": round(sum(seconds.values()), 2),
        "frames": frames,
        "tar_bytes": size,
        "clips_by_kind": dict(clips),
        "seconds_by_kind": {kind: round(value, 2) for kind, value in seconds.items()},
        "clips_by_split": dict(splits),
        "rows_by_view": dict(rows),
        "dropped_by_reason": dict(sorted(dropped.items())),
        "dropped": drops,
    }


def read_farm_file(output_dir: Path, name: str = FILE) -> dict:
    """The `farm.json` of a folder (or of one part), empty where there is none yet.

    Raises:
        UserError: it is not JSON.
    """
    path = output_dir / name
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON", seen=error, remedy="delete it; the farm writes it again") from error


def write_farm_file(output_dir: Path, content: Mapping[str, object], name: str = FILE) -> str:
    """Publishes `farm.json` (or that of one part) and returns its text.

    Raises:
        UserError: the folder cannot be written (a full disk, rights).
    """
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        publish_bytes(output_dir / name, text.encode())
    except OSError as error:
        remedy = "free space or correct the folder's rights, then run the same command again"
        raise UserError(f"{output_dir / name} could not be written", seen=error, remedy=remedy) from error
    return text
