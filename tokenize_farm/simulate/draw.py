"""Random draws that depend on names alone: the same clip draws the same in every run, process and version of Python."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Draw:
    """A stream of draws named by `parts` (seed, clip id, purpose). Only `Random.random` is used, whose stream Python guarantees."""

    def __init__(self, *parts: object) -> None:
        digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:16], "big"))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random.random()

    def below(self, count: int) -> int:
        """0 .. count - 1."""
        return int(self._random.random() * count)

    def choose(self, items: Sequence[Item]) -> Item:
        """One of them."""
        return items[self.below(len(items))]
