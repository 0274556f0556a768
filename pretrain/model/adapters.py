"""Fine-tuning's changes to a built model: low-rank adapters beside products of the blocks, and which parameters are frozen.

Which those are is `configs.finetune`; names as there. What a checkpoint with adapters reads as is `pretrain.cuts.read_merged`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from uniaudio.configs.finetune import FinetuneConfig, adapter_names
from uniaudio.pretrain.model.init import named_generator
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.parallel.tensor import ColumnLinear, RowLinear


class Adapter(nn.Module):
    """scale x A^T B^T; a (rank, input), b (output, rank)."""

    def __init__(self, input_width: int, output_width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.a = nn.Parameter(torch.empty(rank, input_width))
        self.b = nn.Parameter(torch.zeros(output_width, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., input) -> (..., output)."""
        return F.linear(F.linear(x, self.a), self.b) * self.scale


def prepare(model: MultiScaleTransformer, finetune: FinetuneConfig, *, seed: int | None) -> None:
    """Adds the adapters and freezes, in place. A starts as normal(0, 1 / sqrt(input)) of (`seed`, name), B as 0: nothing changes yet."""
    for name, parameter in list(model.named_parameters()):
        if finetune.lora.adapts(name):
            layer = model.get_submodule(name.removesuffix(".weight"))
            assert isinstance(layer, ColumnLinear | RowLinear), "whole layers: configs/rules.py"
            output_width, input_width = parameter.shape
            with torch.device(parameter.device):
                layer.adapter = Adapter(input_width, output_width, finetune.lora.rank, finetune.lora.scale)
            if seed is not None:
                nn.init.normal_(layer.adapter.a, 0.0, input_width**-0.5, generator=named_generator(seed, adapter_names(name)[0]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(finetune.trains(name))
