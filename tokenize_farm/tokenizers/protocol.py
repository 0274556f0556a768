"""What a tokenizer is, and the registry that makes one by name.

Owns the border between the farm and every tokenizer. A tokenizer is cheap to make: its constructor checks options, files and
packages and works out its version, so that the driver finds every fault before a worker starts; models are loaded at the first
`encode`. Arrays have the dtype and shape of `schema.VIEWS`; frame views have `num_frames(samples)` rows, one each 20 ms.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, runtime_checkable

import numpy as np

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.manifest import ManifestRow

SAMPLES_PER_FRAME = 320  # 50 frames/s at 16 kHz
VOICED_KINDS = ("speech", "singing")

# name -> (module, class). A module is imported only when its tokenizer is asked for.
REGISTRY: dict[str, tuple[str, str]] = {
    "codec": ("codec", "CodecTokenizer"),
    "encodec": ("encodec", "EncodecTokenizer"),
    "phones": ("phones", "PhoneTokenizer"),
    "aligned_phones": ("aligned", "AlignedPhoneTokenizer"),
    "sing_phones": ("aligned", "SingPhoneTokenizer"),
    "text": ("text", "TextTokenizer"),
    "t5": ("t5", "T5Tokenizer"),
    "semantic": ("semantic", "SemanticTokenizer"),
    "hubert": ("hubert", "HubertTokenizer"),
    "f0": ("f0", "F0Tokenizer"),
}


@dataclass(frozen=True)
class Clip:
    """A manifest row and its sound: float32 (S,) mono at 16 kHz."""

    row: ManifestRow
    samples: np.ndarray


class Tokenizer(Protocol):
    """Turns clips into the arrays of one view."""

    name: str
    version: str
    view: str

    def encode(self, clips: Sequence[Clip]) -> list[np.ndarray | None]:
        """One array a clip, in order; None where the clip has nothing for this view (no text, say).

        A clip's array does not depend on the other clips of the call.
        """
        ...


@runtime_checkable
class AheadTokenizer(Tokenizer, Protocol):
    """A tokenizer whose device works while the host goes on."""

    def load(self) -> None:
        """Loads what the first `encode` would load, so that a worker is ready when it says so."""
        ...

    def begin(self, clips: Sequence[Clip]) -> Callable[[], list[np.ndarray | None]]:
        """Starts what `encode` does; what is returned waits for the arrays, in any thread. One thread at a time begins."""
        ...


@runtime_checkable
class AudioTokenizer(Tokenizer, Protocol):
    """A tokenizer of the view `audio`: its codes can be heard again."""

    def decode(self, codes_TQ: np.ndarray) -> np.ndarray:
        """Codes of the first Q levels -> float32 samples at 16 kHz, in [-1, 1]."""
        ...


def make_tokenizer(name: str, options: Mapping[str, object] | None = None) -> Tokenizer:
    """The tokenizer registered as `name`.

    Raises:
        UserError: unknown name or option, a missing file or folder.
        MissingDependency: a package that this tokenizer needs.
    """
    if name not in REGISTRY:
        raise UserError("unknown tokenizer", seen=name, allowed=", ".join(REGISTRY))
    module, kind = REGISTRY[name]
    return getattr(import_module(f"uniaudio.tokenize_farm.tokenizers.{module}"), kind)(dict(options or {}))


def num_frames(samples: np.ndarray) -> int:
    """Frames of a clip: ceil(S / 320)."""
    return -(-len(samples) // SAMPLES_PER_FRAME)


def description(row: ManifestRow) -> str | None:
    """The words that describe a clip: its caption, or the text of a sound or of music (spoken text is no description)."""
    return row.caption or (row.text if row.kind in ("sound", "music") else None)
