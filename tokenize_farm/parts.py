"""A farm cut into parts that run side by side, each as a farm of its own over the same folder: what a scheduler's job array starts.

Part i of n makes the units whose place in the plan is i modulo n. The plan is a pure function of the manifest, so the parts agree without
talking to each other, and the shards are the bytes that one farm would make.
"""

from dataclasses import dataclass

import numpy as np

from uniaudio.configs.farm import FarmConfig

FILE = "farm.json"


@dataclass(frozen=True)
class Part:
    """Number `index` of `count`, from 0; the whole farm is part 0 of 1."""

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, config: FarmConfig) -> "Part":
        """What `part` of the config says."""
        return cls(*map(int, config.part.split("/"))) if config.part else cls()

    @property
    def farm_file(self) -> str:
        """Where this part sums up: `farm.json`, or its own file beside it."""
        return FILE if self.count == 1 else f"farm.part-{self.index}-of-{self.count}.json"

    @property
    def lock_file(self) -> str:
        """Held by the one driver of this part."""
        return f".farm-{self.index}-of-{self.count}.lock"

    def has(self, unit: int) -> bool:
        """Whether the unit at that place in the plan is this part's."""
        return unit % self.count == self.index

    def own(self, units: np.ndarray) -> np.ndarray:
        """The units of this part, in order."""
        return units[units % self.count == self.index]


WHOLE = Part()
