"""Shards -> checkpoint -> generated audio: data, model, engine, generation, evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from uniaudio.pretrain.loaded import LoadedModel


def load_model(path: "Path | str", device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None) -> "LoadedModel":
    """A trained model as a module that maps vocabulary ids `codes_BTQ` to logits (B, T, Q, V); float32 unless `dtype` is given.

    path: an export folder, a checkpoint, or the folder of a run (its newest checkpoint).

    Raises:
        UserError: no checkpoint there, or its bytes are not those that were written.
    """
    import torch

    from uniaudio.pretrain import loaded  # here: the package's light modules are imported without torch

    return loaded.load_model(path, device, dtype or torch.float32)
