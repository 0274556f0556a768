"""Tensors of a checkpoint put together from the parts that a layout wrote, and adapters (`configs.finetune`) put into the weights."""

from collections.abc import Iterable
from typing import Any

import torch

from uniaudio.configs.finetune import LoraConfig, adapter_names, is_adapter
from uniaudio.pretrain.parallel.named_state import Slot
from uniaudio.pretrain.tensor_file import TensorFiles


def read_cut(files: TensorFiles, manifest: dict[str, Any], slot: Slot, key: str) -> torch.Tensor | None:
    """The slot's cut of a saved tensor, put together from the parts that hold it; None where it was not saved."""
    name, dim, start, length = slot.name, slot.partition_dim, slot.start, slot.valid
    entry = manifest["parameters"][name]
    kind, tensor_name = ("weights", name) if key == "weight" else ("optimizer", f"{name}.{key}")
    file_of = {part["tag"]: f"{kind}-{part['tag']}.safetensors" for part in entry["parts"]}
    first = next(iter(file_of.values()))
    if first not in manifest["files"] or not files.has(first, tensor_name):  # an export has weights alone
        return None
    if dim is None:
        return files.read(file_of[entry["parts"][0]["tag"]], tensor_name)
    pieces: list[torch.Tensor] = []
    for part in sorted(entry["parts"], key=lambda part: part["start"]):
        low, high = max(start, part["start"]), min(start + length, part["stop"])
        if low < high or (length == 0 and not pieces):
            pieces.append(files.read(file_of[part["tag"]], tensor_name, dim, low - part["start"], max(high, low) - part["start"]))
    return torch.cat(pieces, dim=dim)


def base_slots(slots: Iterable[Slot]) -> list[Slot]:
    """Without adapters: the parameters that every model of these sizes has."""
    return [slot for slot in slots if not is_adapter(slot.name)]


def read_merged(files: TensorFiles, manifest: dict[str, Any], slot: Slot, key: str) -> torch.Tensor | None:
    """As `read_cut`, of the plain model that a checkpoint with adapters is: W + (alpha / rank) B A.

    key: `weight` in its dtype, or `master` in fp32; of an adapted weight there is always one.
    """
    tensor = read_cut(files, manifest, slot, key)
    names = adapter_names(slot.name)
    if is_adapter(slot.name) or names[0] not in manifest["parameters"]:
        return tensor
    base = tensor if tensor is not None else read_cut(files, manifest, slot, "weight")  # what is frozen has no master
    assert base is not None
    a, b = (_adapter(files, manifest, name, key) for name in names)
    delta = LoraConfig.model_validate(manifest["config"]["finetune"]["lora"]).scale * (b @ a)
    if slot.partition_dim is not None:
        delta = delta.narrow(slot.partition_dim, slot.start, slot.valid)
    merged = base.float() + delta
    return merged.to(base.dtype) if key == "weight" else merged


def _adapter(files: TensorFiles, manifest: dict[str, Any], name: str, key: str) -> torch.Tensor:
    """A or B, whole, in fp32; its weight where there is no other."""
    slot = Slot(name, torch.nn.Parameter(torch.empty(0)), (), None, 0, 0)
    found = read_cut(files, manifest, slot, key)
    found = read_cut(files, manifest, slot, "weight") if found is None else found
    assert found is not None
    return found.float()
