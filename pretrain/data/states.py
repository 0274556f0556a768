"""Memory for the text states of micro-batches: megabytes each, and most of them zeros, so they are used again instead of made anew."""

import sys
from dataclasses import dataclass, field

import numpy as np
import torch

_KEPT = 16


@dataclass
class _Entry:
    array: np.ndarray
    used: list[int] = field(default_factory=list)


class StatesPool:
    """Zeros of (B, S, C) float32. `none`: shared by all micro-batches without text, so never to be written to."""

    def __init__(self, rows: int, states: int, width: int) -> None:
        self.shape = (rows, states, width)
        self.none = torch.zeros(self.shape)
        self._entries: list[_Entry] = []

    def take(self) -> tuple[np.ndarray, list[int]]:
        """Zeros nobody else holds, and a count for each row: who writes says there how many of its first states may not be zero any more.

        An array is free again when no tensor over its memory is left: tensors hold a reference to the array that they were made of.
        """
        for entry in self._entries:
            if sys.getrefcount(entry.array) == 2:  # the entry's, and the argument's
                for row, count in enumerate(entry.used):
                    entry.array[row, :count] = 0
                    entry.used[row] = 0
                return entry.array, entry.used
        made = _Entry(np.zeros(self.shape, np.float32), [0] * self.shape[0])
        if len(self._entries) < _KEPT:
            self._entries.append(made)
        return made.array, made.used
