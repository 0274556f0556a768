"""What goes into the frame loop and what comes out of it, without a tensor of the model."""

from dataclasses import dataclass, field

import numpy as np
import torch

from uniaudio.errors import UserError
from uniaudio.pretrain.data.sequence import Sequence as Document
from uniaudio.pretrain.model.decode import Prompt
from uniaudio.pretrain.sampling import Sampling

FRAME_RATE = 50


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    document: the conditions, up to `<audio_start>`. free: the same without conditions; needed where sampling.guidance is not 1.
    """

    document: Document
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    min_frames: int = 1
    max_frames: int = 20 * FRAME_RATE
    free: Document | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_frames <= self.max_frames:
            raise UserError("frames to generate", seen=f"at least {self.min_frames}, at most {self.max_frames}", allowed="1 <= min <= max")
        if not 0 <= self.seed < 2**63:
            raise UserError("seed", seen=self.seed, allowed="0..2^63-1")
        if self.guided and self.free is None:
            raise ValueError("a request with guidance needs the document without conditions")

    @property
    def guided(self) -> bool:
        """True where a second sequence, without conditions, runs beside."""
        return self.sampling.guidance != 1

    @property
    def rows(self) -> int:
        """Sequences that run for this request."""
        return 2 if self.guided else 1

    @property
    def frames(self) -> int:
        """Slots of the cache that it can fill: `<mega_global>`, the conditions, the audio."""
        return self.document.codes_LQ.shape[0] + self.max_frames + 1


@dataclass(frozen=True)
class Generated:
    """codes_TQ: uint16 raw codec codes. stopped: the model ended the audio itself; False: the limit of frames did.

    score: mean log-probability of the codes drawn, in nats.
    """

    codes_TQ: np.ndarray
    stopped: bool
    score: float


@dataclass(frozen=True)
class Piece:
    """News of one request: its codes since the last piece, (T, Q) uint16, and the whole where it has ended."""

    index: int
    codes_TQ: np.ndarray
    whole: Generated | None


def to_prompt(document: Document) -> Prompt:
    """The numpy document of the data path as the tensors of the decoder."""
    has_text = document.text_positions.size > 0
    return Prompt(
        codes_TQ=torch.from_numpy(document.codes_LQ),
        text_states_SC=torch.from_numpy(document.text_states.astype(np.float32)) if has_text else None,
        text_positions_S=torch.from_numpy(document.text_positions) if has_text else None,
        prefix_length=document.prefix_length,
    )
