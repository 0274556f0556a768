"""What `variants` checks and times: the forms of one kernel, the library beside them, and the truth."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

Results = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What is computed, by whom: `forms` are tried beside `peer`; results that the truth names are compared.

    `peer` makes its call ready; `kept` are results that the forms write again and again: they are poisoned before each check. `flops` and
    `bytes` of one call say how far a time is from the card's limits.
    """

    forms: dict[str, Callable[[], Results]]
    peer_name: str
    peer: Callable[[], Callable[[], Results]]
    truth: Callable[[], Results]
    flops: float
    bytes: float
    kept: tuple[torch.Tensor, ...] = ()


def label(launch: object) -> str:
    """The launch's values, without those that are not set."""
    return " ".join(f"{key}={value}" for key, value in asdict(launch).items() if value not in (False, None, 0))  # type: ignore[call-overload]
