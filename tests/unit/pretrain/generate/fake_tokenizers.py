"""Tokenizers of every view that need no model: what they say is a plain function of the clip."""

import numpy as np

from uniaudio.tokenize_farm.tokenizers.protocol import Clip, num_frames


class PlainTokenizer:
    """Codes from the samples, phones from letters (ids from 20 on, a border 3 between words), two text states a word."""

    version = "1"

    def __init__(self, view: str) -> None:
        self.name, self.view = f"plain_{view}", view

    @property
    def context_frames(self) -> int:
        return 3

    def encode(self, clips: list[Clip]) -> list[np.ndarray | None]:
        return [self._encode(clip) for clip in clips]

    def _encode(self, clip: Clip) -> np.ndarray | None:
        frames = num_frames(clip.samples)
        words = (clip.row.text or "").lower().split()
        if self.view == "audio":
            levels = np.add.outer((np.abs(clip.samples[::320]) * 1000).astype(int), [0, 100, 200])
            return (levels % 1024).astype(np.uint16)
        if self.view in ("semantic", "midi"):
            return (np.arange(frames) % 100).astype(np.uint16)
        if self.view == "text":
            return np.full((2 * len((clip.row.caption or "").split()), 8), 0.5, np.float16)
        ids = [20 + ord(letter) - ord("a") if letter.isalpha() else 1 for word in words for letter in word]
        if self.view == "phone":
            return np.array([(phone, 0) for phone in ids], np.uint16) if ids else None
        if not ids or len(ids) > frames:
            return None
        lasts = np.diff(np.round(np.linspace(0, frames, len(ids) + 1)))
        return np.stack([ids, lasts], axis=1).astype(np.uint16)

    def decode(self, codes_TQ: np.ndarray) -> np.ndarray:
        """Each frame is the mean of the codes up to three frames around it."""
        padded = np.pad(codes_TQ[:, 0].astype(np.float32) / 2048, 3)
        means = np.convolve(padded, np.ones(7) / 7, mode="valid")
        return np.repeat(means, 320).astype(np.float32)


VIEWS = ("audio", "phone", "phone.aligned", "phone.singing", "semantic", "midi", "text")
TOKENIZERS = {view: PlainTokenizer(view) for view in VIEWS}
