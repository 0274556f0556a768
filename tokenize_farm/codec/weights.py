"""Codec weights on disk: one safetensors file that carries its config as JSON in the metadata.

Owns saving and loading; the shipped weights lie beside it in `weights/`, with their model card.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from uniaudio.atomic import publish_file
from uniaudio.configs.codec import CodecModelConfig
from uniaudio.configs.load import validate
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.model import UniversalCodec

SHIPPED = Path(__file__).parent / "weights" / "universal_16khz_8x1024.safetensors"


def save_codec(path: Path, codec: UniversalCodec, *, dtype: torch.dtype = torch.float16, notes: dict[str, str] | None = None) -> None:
    """Writes config and weights atomically; matrices as `dtype`, codebooks and their projections as float32.

    `notes`: anything worth keeping with the weights (steps, data, GPU); readable with `read_notes`.
    """
    tensors = {
        name: value.detach().to("cpu", torch.float32 if name.startswith("quantizer.") else dtype).contiguous()
        for name, value in codec.state_dict().items()
    }
    metadata = {"format": "uniaudio-codec-1", "config": codec.config.model_dump_json(), "notes": json.dumps(notes or {}, sort_keys=True)}
    with publish_file(Path(path)) as temporary:
        save_file(tensors, str(temporary), metadata=metadata)


def load_codec(path: str | Path | None = None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> UniversalCodec:
    """The codec of a weights file (None: the shipped one), in eval mode; blocks compute in `dtype`.

    Raises:
        UserError: no such file, not a codec file, or weights that do not fit its config.
    """
    file = SHIPPED if path is None else Path(path)
    codec = UniversalCodec(read_config(file))
    with safe_open(str(file), framework="pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    try:
        codec.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise UserError("weights do not fit their config", seen=file, remedy=str(error)) from error
    codec.quantizer.freeze()
    return codec.requires_grad_(False).eval().to(device).compute_in(dtype)


def read_config(path: Path) -> CodecModelConfig:
    """The shape of the codec in a weights file, of which nothing else is read.

    Raises:
        UserError: no such file, or not a codec file.
    """
    if not path.is_file():
        raise UserError("no codec weights", seen=path, remedy="train them: uniaudio codec train CODEC.yaml")
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
    except SafetensorError as error:
        raise UserError("not a safetensors file", seen=path, remedy=str(error)) from error
    if "config" not in metadata:
        raise UserError("these are not weights of the universal codec", seen=path, remedy="use a file written by uniaudio codec train")
    return validate(CodecModelConfig, json.loads(metadata["config"]), source=str(path))


def codes_digest(path: Path) -> str:
    """sha256 of what decides the codes: config, encoder, codebooks. Weights that differ in the decoder alone have one and the same."""
    total = hashlib.sha256(read_config(path).model_dump_json().encode())
    with safe_open(str(path), framework="numpy") as handle:
        for name in sorted(handle.keys()):
            if not name.startswith("decoder."):
                total.update(name.encode())
                total.update(handle.get_tensor(name).tobytes())
    return total.hexdigest()


def read_notes(path: str | Path | None = None) -> dict[str, str]:
    """What was noted when the weights were saved."""
    with safe_open(str(SHIPPED if path is None else path), framework="pt") as handle:
        return json.loads((handle.metadata() or {}).get("notes", "{}"))
