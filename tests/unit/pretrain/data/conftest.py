"""Tiny clips made from an integer."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from uniaudio.configs.tasks import TaskConfig
from uniaudio.pretrain.data.sequence import MASKED
from uniaudio.tokenize_farm.schema import TokenizedClip
from uniaudio.tokenize_farm.shard_writer import write_shard

sys.path.insert(0, str(Path(__file__).parent))  # for plain.py, loaders.py

TEXT_WIDTH = 8
ENTRIES = {"class_event": 527, "audio": 1024, "phone": 306, "semantic": 500, "sing_phone": 68, "sing_midi": 138}


def _views(
    task: TaskConfig, seed: int, *, frames: int = 90, rows: Mapping[str, int] | None = None, levels: int = 8
) -> dict[str, np.ndarray]:
    """Views by segment key, as the builder wants them: `frames` target frames, conditions of `rows` rows (by key) or drawn lengths."""
    rng = np.random.default_rng(seed)
    views: dict[str, np.ndarray] = {}
    for segment in task.segments:
        key = segment.key
        count = frames if segment.follows_target or key == task.target.key else int(rng.integers(1, 60))
        count = (rows or {}).get(key, count)
        if segment.modality == "continuous":
            views[key] = rng.normal(size=(count, TEXT_WIDTH)).astype(np.float16)
        elif segment.modality == "audio":
            views[key] = rng.integers(0, 1024, (count, levels)).astype(np.uint16)
        elif segment.durations == "keep":
            lasts = rng.multinomial(count, np.ones(min(count, 7)) / min(count, 7))
            lasts = lasts[lasts > 0]
            ids = (np.arange(len(lasts)) * 5 + rng.integers(0, 5)) % ENTRIES[segment.modality]
            views[key] = np.stack([ids, lasts], axis=1).astype(np.uint16)
        elif segment.view.startswith("phone"):
            views[key] = np.stack([rng.integers(0, 306, count), np.zeros(count, np.int64)], axis=1).astype(np.uint16)
        else:
            views[key] = rng.integers(0, ENTRIES[segment.modality], count).astype(np.uint16)
        if segment.draw == "masked":
            views[key][count // 3 : count // 2] = MASKED
    return views


@pytest.fixture(scope="session")
def views_of() -> Callable[..., dict[str, np.ndarray]]:
    """Function (task, seed, frames=, rows=, levels=) -> views by segment key."""
    return _views


def _clip(number: int, rng: np.random.Generator, *, speakers: int, frames: tuple[int, int]) -> TokenizedClip:
    kind = ("speech", "speech", "sound", "music", "singing")[number % 5]
    count = int(rng.integers(*frames))
    audio = rng.integers(0, 1024, (count, 4)).astype(np.uint16)
    views = {"audio": audio}
    if kind == "speech":
        phones = int(rng.integers(3, 30))
        lasts = rng.multinomial(count, np.ones(phones) / phones)
        views["phone.aligned"] = np.stack([rng.integers(0, 306, phones), lasts], axis=1).astype(np.uint16)
        views["phone"] = views["phone.aligned"] * np.array([1, 0], np.uint16)
        views["semantic"] = rng.integers(0, 500, max(1, count - 1)).astype(np.uint16)
        views["audio.noisy"] = audio[::-1].copy()
    elif kind == "singing":
        views["phone.singing"] = np.array([[number % 68, count]], np.uint16)
        views["midi"] = rng.integers(0, 138, count).astype(np.uint16)
    else:
        views["event"] = rng.integers(0, 527, int(rng.integers(1, 6))).astype(np.uint16)
        views["text"] = rng.normal(size=(int(rng.integers(2, 12)), TEXT_WIDTH)).astype(np.float16)
    meta: dict[str, object] = {"id": f"clip {number}", "kind": kind, "seconds": count / 50}
    if kind in ("speech", "singing"):
        meta["speaker"] = f"s{number % speakers}"
    return TokenizedClip(f"clip-{number:05d}", meta, views)


def _write_shards(
    directory: Path, *, split: str = "train", shards: int = 4, clips_per_shard: int = 12, seed: int = 0, speakers: int = 3, frames=(60, 140)
) -> Path:
    rng = np.random.default_rng(seed)
    for unit in range(shards):
        numbers = range(unit * clips_per_shard, (unit + 1) * clips_per_shard)
        clips = [_clip(number, rng, speakers=speakers, frames=frames) for number in numbers]
        write_shard(directory, split, unit, clips, tokenizers={"audio": "test/1"})
    return directory


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., Path]:
    """Function (directory, split=, shards=, clips_per_shard=, ...) that writes shards of every kind and view."""
    return _write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train (48 clips) and valid (10 clips) shards; read only."""
    directory = tmp_path_factory.mktemp("shards")
    _write_shards(directory)
    return _write_shards(directory, split="valid", shards=1, clips_per_shard=10, seed=1)
