"""Durations by a CTC recogniser of letters (a Wav2Vec2ForCTC, say) from a local folder or the hub, for any language it knows.

The words' letters are laid on the frames by the likeliest path; the phones of a word share its time evenly.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.tokenizers.resources import digest, folder_digest, model_folder, pick_device

if TYPE_CHECKING:
    from transformers import Wav2Vec2ForCTC

_IMPOSSIBLE = -1e30


class CtcAligner:
    """name `ctc`."""

    def __init__(self, model: str, device: str) -> None:
        self._folder, self._device = model_folder(model, needed_for="aligned phones (aligner ctc)"), device
        self.version = f"ctc-{digest(folder_digest(self._folder))}"
        try:
            self._letters: dict[str, int] = json.loads((self._folder / "vocab.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            remedy = "a folder of a Wav2Vec2ForCTC with the vocab.json of its letters"
            raise UserError("aligned phones (aligner ctc): no letters beside the model", seen=error, remedy=remedy) from error
        self._model: Wav2Vec2ForCTC | None = None

    def _load(self) -> "Wav2Vec2ForCTC":
        if self._model is None:
            from transformers import AutoModelForCTC

            model = AutoModelForCTC.from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
            self._model = model.eval().to(pick_device(self._device))
        return self._model

    def word_times(self, words: Sequence[str], samples: np.ndarray) -> list[tuple[float, float]] | None:
        """(start, end) seconds of each word of letters in samples (S,); None where the model lacks a letter or the clip is too short."""
        import torch

        spelled = [[number for letter in word if (number := self._number(letter)) is not None] for word in words]
        labels = [number for word in spelled for number in word]
        if not labels or len(labels) != sum(map(len, words)):
            return None
        model = self._load()
        normal = (samples - samples.mean()) / (samples.std() + 1e-7)
        with torch.inference_mode():
            logits = model(torch.from_numpy(normal.astype(np.float32))[None].to(model.device)).logits[0]
            scores_TV = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
        frames = best_path(scores_TV, labels, blank=int(model.config.pad_token_id))
        if frames is None:
            return None
        seconds = len(samples) / SAMPLE_RATE / len(scores_TV)
        ends = np.cumsum([len(word) for word in spelled])
        return [(frames[end - len(word)][0] * seconds, frames[end - 1][1] * seconds) for end, word in zip(ends, spelled)]

    def _number(self, letter: str) -> int | None:
        return self._letters.get(letter, self._letters.get(letter.upper()))


def best_path(scores_TV: np.ndarray, labels: Sequence[int], *, blank: int) -> list[tuple[int, int]] | None:
    """First frame and last + 1 of each label (L of them) on the likeliest CTC path through log probabilities (T, V); None if T is short."""
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    frames, count = len(scores_TV), len(states)
    skips = np.zeros(count, bool)
    skips[2:] = (states[2:] != blank) & (states[2:] != states[:-2])
    best = np.full(count, _IMPOSSIBLE)
    best[:2] = scores_TV[0, states[:2]]
    back = np.zeros((frames, count), np.int8)
    for frame in range(1, frames):
        from_one = np.concatenate([[_IMPOSSIBLE], best[:-1]])
        from_two = np.where(skips, np.concatenate([[_IMPOSSIBLE] * 2, best[:-2]]), _IMPOSSIBLE)
        ways = np.stack([best, from_one, from_two])
        back[frame] = ways.argmax(axis=0)
        best = ways.max(axis=0) + scores_TV[frame, states]
    state = count - 1 if best[-1] >= best[-2] else count - 2
    if best[state] < _IMPOSSIBLE / 2:
        return None
    path = np.empty(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = state
        state -= back[frame, state]
    places = [np.flatnonzero(path == 2 * i + 1) for i in range(len(labels))]
    return [(int(place[0]), int(place[-1]) + 1) for place in places]
