"""What tokenizers share: finding packages and model folders, versions from the bytes of files, the device, unit codebooks."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uniaudio.errors import MissingDependency, UserError
from uniaudio.log import get_logger

if TYPE_CHECKING:
    import torch

_WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.txt")


def require(package: str, *, needed_for: str) -> None:
    """Raises MissingDependency unless `package` can be imported; imports nothing."""
    if find_spec(package) is None:
        raise MissingDependency(package, needed_for=needed_for, extra="farm")


def digest(*parts: str | bytes | Path) -> str:
    """12 hex digits over texts, bytes and the contents of files, in order."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as handle:
                total.update(hashlib.file_digest(handle, "sha256").digest())
        else:
            total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()[:12]


def model_folder(model: str, *, needed_for: str, revision: str | None = None) -> Path:
    """A folder of safetensors weights: `model` itself where it is a folder, else the hub's model of that name (downloaded once).

    Raises:
        UserError: no such folder and no such model on the hub, or no network; a folder without safetensors weights.
    """
    require("transformers", needed_for=needed_for)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

        try:
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(_WEIGHTS)))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            remedy = "give a local folder with config.json and model.safetensors, or the name of a model on the hub"
            raise UserError(f"{needed_for}: no such local folder, and the hub did not give it", seen=model, remedy=remedy) from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{needed_for}: the folder holds no *.safetensors", seen=folder, remedy="save the model with save_pretrained")
    return folder


def folder_digest(folder: Path) -> str:
    """Digest over the weights, configs and vocabularies of a model folder, by name."""
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    return digest(*(part for file in files for part in (file.name, file)))


def pick_device(device: str) -> "torch.device":
    """`auto`: CUDA where there is one, else the CPU; the choice is logged."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        get_logger("uniaudio.tokenizers").debug("device auto: %s", device)
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device", seen=device, allowed="auto, cpu")
    return torch.device(device)


class UnitCodebook:
    """K cluster centres in a safetensors file: `centroids` (K, C), and where features are scaled first, `scale` (C,).

    Gives each feature row the number of its nearest centre.
    """

    def __init__(self, path: Path, *, features: str) -> None:
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise UserError("no file of k-means centres", seen=path, remedy="fit one: uniaudio tokenize fit-semantic, or convert yours")
        try:
            with safe_open(str(path), framework="numpy") as handle:
                metadata = handle.metadata() or {}
                tensors = {name: handle.get_tensor(name).astype(np.float32) for name in ("centroids", "scale") if name in handle.keys()}  # noqa: SIM118
                self.centroids_KC = tensors["centroids"]
                self._scale_C = tensors.get("scale", np.ones(1, np.float32))
        except (SafetensorError, KeyError) as error:
            remedy = 'a safetensors file with one float tensor "centroids" (units, features); pickled .km files are not read'
            raise UserError(f"{path}: not a file of k-means centres", seen=error, remedy=remedy) from error
        made_for = metadata.get("features", features)
        if made_for != features or self.centroids_KC.ndim != 2 or len(self.centroids_KC) > 1 << 16:
            raise UserError(f"{path}: centres for other features", seen=f"{made_for} {self.centroids_KC.shape}", allowed=features)
        self._half_norms_K = 0.5 * np.square(self.centroids_KC).sum(axis=1)

    def nearest(self, features_TC: np.ndarray) -> np.ndarray:
        """(T, C) -> (T,) uint16; ties go to the lower number."""
        if features_TC.shape[1] != self.centroids_KC.shape[1]:
            raise UserError("features and centres differ in width", seen=features_TC.shape[1], allowed=self.centroids_KC.shape[1])
        return np.argmax((features_TC * self._scale_C) @ self.centroids_KC.T - self._half_norms_K, axis=1).astype(np.uint16)


def fit_frames(units_T: np.ndarray, frames: int) -> np.ndarray:
    """Cuts, or repeats the last row, so that a view has exactly `frames` rows."""
    if len(units_T) >= frames:
        return units_T[:frames]
    return np.concatenate([units_T, np.repeat(units_T[-1:], frames - len(units_T), axis=0)])
