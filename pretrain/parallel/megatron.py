"""The tensor-parallel forms of `pretrain.parallel.tensor`, on megatron-core. Imported only when the size exceeds 1.

megatron-core's layers own the cut parameters; here they get the parameter names and signatures of the one-process forms, and products
that work on cut tokens and travel beside their collectives (`pretrain.parallel.sequence`).
"""

import warnings

import torch
from torch import nn

with warnings.catch_warnings():
    # It warns that Transformer Engine and Apex are missing; the layers used here need neither.
    warnings.simplefilter("ignore")
    from megatron.core import ModelParallelConfig
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from uniaudio.pretrain.parallel.sequence import gathered_linear, scattered_linear
from uniaudio.pretrain.parallel.tensor import TensorParallel


def _config(tensor: TensorParallel) -> ModelParallelConfig:
    # CPU initialization allocates on the CPU (the caller moves the model) and needs no CUDA random state.
    return ModelParallelConfig(tensor_model_parallel_size=tensor.size, use_cpu_initialization=True, perform_initialization=False)


def _no_extra_state(layer: nn.Module) -> None:
    """Drops the hook that adds Transformer Engine's `_extra_state`: state dicts keep the names of the plain layers."""
    layer._load_state_dict_pre_hooks.clear()


class ColumnLinear(ColumnParallelLinear):
    """y_rank = x W_rank^T of all tokens, from the own ones; the input's gradient is summed over the group."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def __init__(self, input_width: int, output_width: int, tensor: TensorParallel, *, bias_width: int) -> None:
        super().__init__(input_width, output_width, config=_config(tensor), init_method=nn.init.zeros_, bias=False, tp_group=tensor.group)
        _no_extra_state(self)
        self.group = tensor.group
        if bias_width:
            self.bias = nn.Parameter(torch.empty(bias_width // tensor.size))
        self.skip_bias_add = True

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(X / size, input) -> (X, output / size); adds `bias` where given."""
        return gathered_linear(x, self.weight, bias, self.group)


class RowLinear(RowParallelLinear):
    """y = sum over ranks of x_rank W_rank^T, plus the bias once; of the own tokens. `bias_gradient_elsewhere` as in one process."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state
    bias_gradient_elsewhere = False

    def __init__(self, input_width: int, output_width: int, tensor: TensorParallel) -> None:
        super().__init__(
            input_width,
            output_width,
            config=_config(tensor),
            init_method=nn.init.zeros_,
            bias=True,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=tensor.group,
        )
        self.group = tensor.group
        _no_extra_state(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(X, input / size) -> (X / size, output)."""
        bias = self.bias.detach() if self.bias_gradient_elsewhere else self.bias
        return scattered_linear(x, self.weight, bias, self.group)
