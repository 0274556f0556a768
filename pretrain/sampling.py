"""How to draw codes: what a user chooses, checked, and the seed of each sequence. The draw itself is `kernels.draw`."""

from dataclasses import dataclass

from uniaudio.errors import UserError
from uniaudio.kernels.draw import Setting
from uniaudio.pretrain.data.draw import hashed, salt


@dataclass(frozen=True)
class Sampling:
    """How to draw (paper, section Optimisation: top-k 30, temperature 0.8). temperature 0 is greedy.

    guidance: logits move this far from those without conditions to those with them (1: off; costs a second sequence). penalty: the
    logits of codes drawn in the last second are divided by it where positive, multiplied where negative (1: off).
    """

    top_k: int = 30
    temperature: float = 0.8
    top_p: float = 1.0
    guidance: float = 1.0
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UserError("top-k must be at least 1", seen=self.top_k, allowed=">= 1", remedy="30 is the paper's")
        if not 0 <= self.temperature < float("inf"):
            raise UserError("temperature must not be negative", seen=self.temperature, allowed=">= 0", remedy="0 is greedy")
        if not 0 < self.top_p <= 1:
            raise UserError("top-p must lie in (0, 1]", seen=self.top_p, allowed="(0, 1]")
        if not 0 <= self.guidance <= 100:
            raise UserError("guidance must lie in [0, 100]", seen=self.guidance, allowed="[0, 100]", remedy="1 is off, 3 is usual")
        if not 0 < self.penalty <= 100:
            raise UserError("repetition penalty must lie in (0, 100]", seen=self.penalty, allowed="(0, 100]", remedy="1 is off")

    def settings(self) -> list[float]:
        """The row of `kernels.draw.Setting`."""
        values = {
            Setting.temperature: self.temperature,
            Setting.top_p: self.top_p,
            Setting.penalty: self.penalty,
            Setting.guidance: self.guidance,
        }
        return [values[name] for name in Setting]


def candidate_seed(seed: int, candidate: int) -> int:
    """The seed of one of several candidates; the first one's is `seed` itself. In 0..2^63-1."""
    return seed if candidate == 0 else int(hashed(seed, candidate)[0] >> 1)


def named_seed(seed: int, name: str) -> int:
    """The seed of a manifest's row: a function of its id, not of its place. In 0..2^63-1."""
    return int(hashed(seed, salt(name))[0] >> 1)
