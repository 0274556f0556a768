"""Tiny clips made from an integer."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from uniaudio.configs.tasks import TaskConfig
from uniaudio.pretrain.data.sequence import MASKED

TEXT_WIDTH = 8
ENTRIES = {"audio": 1024, "phone": 306, "semantic": 500, "sing_phone": 68, "sing_midi": 138}


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
