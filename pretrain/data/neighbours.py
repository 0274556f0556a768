"""The clips of a block: which of them serve a task, and another clip of the same voice for each that needs a prompt."""

import numpy as np

from uniaudio.pretrain.data.clips import ClipTable
from uniaudio.pretrain.data.draw import below
from uniaudio.pretrain.data.mix import Service


class Neighbours:
    """The clips of a block; draws another clip of the same voice: from the block where it holds one (read anyway), else from the split."""

    def __init__(self, clips: ClipTable, block: np.ndarray) -> None:
        self.clips = clips
        self._block = block
        self._dataset = clips.dataset_of(block)
        self._groups = clips.column("groups", block)
        voices = clips.column("voices", block).astype(np.int64)
        voiced = np.flatnonzero(voices >= 0)
        whose = voices[voiced] + (self._dataset[voiced] << 32)
        order = np.lexsort((block[voiced], whose))
        self._sorted = block[voiced][order]  # by voice, then by clip
        opens = np.flatnonzero(np.diff(whose[order], prepend=-1) != 0)
        sizes = np.diff(opens, append=len(order))
        self._start, self._size = np.repeat(opens, sizes), np.repeat(sizes, sizes)
        self._by_clip = np.argsort(self._sorted, kind="stable")

    def eligible(self, task: int, service: Service) -> tuple[np.ndarray, np.ndarray]:
        """Clips of the block that serve a task, and their datasets."""
        chosen = np.zeros(len(self._block), bool)
        for number in np.unique(self._dataset).tolist():
            inside = self._dataset == number
            chosen[inside] = service.serves[number][task][self._groups[inside]]
        return self._block[chosen], self._dataset[chosen]

    def draw(self, clip: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """(D,) a clip of the same voice, never the clip itself; every clip must have one."""
        if len(clip) == 0:
            return clip
        at = self._by_clip[np.searchsorted(self._sorted, clip, sorter=self._by_clip)]
        start, size = self._start[at], self._size[at]
        drawn = self._sorted[start + (at - start + 1 + below(hashes, np.maximum(size - 1, 1))) % size]
        alone = np.flatnonzero(size == 1)
        drawn[alone] = self.clips.draw_company(clip[alone], hashes[alone])
        return drawn
