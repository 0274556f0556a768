"""Names for voices that nobody named: clips that sound alike get one speaker, so that one can be the other's prompt.

Leader clustering in the manifest's order: a clip joins the voice whose mean embedding is nearest, if it is near enough, or begins one.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from uniaudio.log import get_logger
from uniaudio.tokenize_farm.audio import BadAudio, load_audio
from uniaudio.tokenize_farm.manifest import ManifestRow
from uniaudio.tokenize_farm.tokenizers.protocol import VOICED_KINDS

NEAR = 0.8  # cosine: see docs/task_data.md
log = get_logger("uniaudio.corpus")


class Voices:
    """Voices found so far: the sum of each one's embeddings (C,) of length 1."""

    def __init__(self, near: float) -> None:
        self._near = near
        self._sums: list[np.ndarray] = []

    def name(self, embedding: np.ndarray) -> str:
        """The voice of an embedding (C,) of length 1, `voice-0001` and so on; the voice's mean moves towards it."""
        if self._sums:
            sums = np.stack(self._sums)
            closeness = sums @ embedding / np.linalg.norm(sums, axis=1)
            best = int(closeness.argmax())
            if closeness[best] >= self._near:
                self._sums[best] = self._sums[best] + embedding
                return f"voice-{best + 1:04d}"
        self._sums.append(embedding.astype(np.float64))
        return f"voice-{len(self._sums):04d}"


def name_voices(rows: Iterable[ManifestRow], embed: Callable[[np.ndarray], np.ndarray], *, near: float = NEAR) -> Iterator[ManifestRow]:
    """The rows in order; speech and singing without a speaker get one. Recordings that cannot be read stay as they are, and are logged.

    embed: samples (S,) at 16 kHz -> (C,) of length 1.
    """
    voices = Voices(near)
    for row in rows:
        if row.speaker is None and row.kind in VOICED_KINDS:
            try:
                samples = load_audio(row.audio_filepath, offset=row.offset, duration=row.duration)
                row = row.model_copy(update={"speaker": voices.name(embed(samples))})
            except BadAudio as error:
                log.warning("%s has no voice: %s", row.id, error)
        yield row
