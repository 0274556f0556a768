"""What a shard holds: the views of a clip, the names of files and members, the sidecar and the index columns.

Owns the format; reads and writes nothing. Bump SCHEMA_VERSION when a reader of the old form would misread the new one.

    train-000003.tar          members KEY.json and KEY.VIEW.npy (a WebDataset tar; mtime 0, fixed order)
    train-000003.index.npz    where each array lies: what the data path reads instead of the tar's headers
    train-000003.json         sidecar, published last: a shard without one does not exist
"""

import re
from dataclasses import dataclass, field

import numpy as np

SCHEMA_VERSION = 1
SPLITS = ("train", "valid")

# kind of a clip's recording; "class" in the tables shown to users
KINDS = ("speech", "sound", "music", "singing")

# base view -> (dtype, number of dimensions, what one row is). Codes are raw ids of their modality, never vocabulary ids.
#   audio     (T, Q)  codec codes, level 0 first, 50 frames/s
#   phone     (P, 2)  phone id, frames it lasts (0: duration unknown; of an aligned view: shorter than a frame)
#   semantic  (T,)    semantic unit of each frame, 50 frames/s
#   midi      (T,)    F0 / note value of each frame, 50 frames/s
#   text      (L, C)  continuous states of the text encoder
#   event     (E,)    classes of the events heard, AudioSet's numbering
VIEWS: dict[str, tuple[str, int]] = {
    "audio": ("uint16", 2),
    "phone": ("uint16", 2),
    "semantic": ("uint16", 1),
    "midi": ("uint16", 1),
    "text": ("float16", 2),
    "event": ("uint16", 1),
}

# phone ids below this are marks (silence, word boundary, punctuation), not sounds of a word; <unk> stands for a sound
PHONE_MARKS = 14
UNKNOWN_PHONE = 1

_VIEW_NAME = re.compile(r"^[a-z]+(\.[a-z]+)?$")
_KEY = re.compile(r"^[A-Za-z0-9_\-]{1,200}$")
_SHARD = re.compile(r"^(train|valid)-(\d{6,})$")


def base_view(view: str) -> str:
    """`audio.noisy` -> `audio`; raises ValueError for a name outside VIEWS."""
    base = view.split(".", 1)[0]
    if not _VIEW_NAME.match(view) or base not in VIEWS:
        raise ValueError(f"unknown view {view!r}; allowed: {', '.join(VIEWS)}, each optionally followed by .variant")
    return base


def shard_name(split: str, unit: int) -> str:
    """`train`, 3 -> `train-000003`."""
    return f"{split}-{unit:06d}"


def parse_shard_name(name: str) -> tuple[str, int]:
    """`train-000003` -> (`train`, 3); ValueError otherwise."""
    match = _SHARD.match(name)
    if match is None:
        raise ValueError(f"not a shard name: {name!r}; it looks like train-000003")
    return match.group(1), int(match.group(2))


def valid_key(key: str) -> bool:
    """A clip's key in a shard: letters, digits, `_` and `-` only, so that a tar member can neither leave its folder nor split wrongly."""
    return _KEY.match(key) is not None


@dataclass
class TokenizedClip:
    """One clip as it lies in a shard.

    meta: at least `id` (the manifest's), `kind` (one of KINDS), `seconds`; also `speaker`, `language`, `text`, `caption`,
        `source`, `licence` where known. JSON types only.
    views: name of a view -> array of the dtype and dimensions of VIEWS.
    """

    key: str
    meta: dict[str, object]
    views: dict[str, np.ndarray] = field(default_factory=dict)

    def validate(self) -> "TokenizedClip":
        """Returns itself; raises ValueError for a bad key, view, dtype, shape or kind."""
        if not valid_key(self.key):
            raise ValueError(f"bad key {self.key!r}")
        if self.meta.get("kind") not in KINDS:
            raise ValueError(f"{self.key}: kind {self.meta.get('kind')!r}; allowed: {', '.join(KINDS)}")
        for view, array in self.views.items():
            dtype, dimensions = VIEWS[base_view(view)]
            if array.dtype != np.dtype(dtype) or array.ndim != dimensions or array.shape[0] == 0:
                raise ValueError(
                    f"{self.key}: view {view} is {array.dtype} {array.shape}; expected non-empty {dtype} with {dimensions} dimensions"
                )
        return self


# Columns of NAME.index.npz; N clips in tar order, V views in the order of `views`. All readable with allow_pickle=False.
#   keys        (N,)   unicode
#   speakers    (N,)   unicode, "" where unknown
#   kinds       (N,)   uint8, position in KINDS
#   languages   (N,)   unicode, "" where unknown
#   seconds     (N,)   float32
#   views       (V,)   unicode, names
#   offsets     (N, V) int64, byte of the tar where the raw array data (after the .npy header) begins; -1: clip lacks the view
#   shapes      (N, V, 2) int32, rows and columns (columns 1 for one-dimensional views); 0 where lacking
#   json_spans  (N, 2) int64, byte offset and length of the clip's KEY.json in the tar
INDEX_COLUMNS = ("keys", "speakers", "kinds", "languages", "seconds", "views", "offsets", "shapes", "json_spans")
