"""The tensor-parallel forms of `pretrain.parallel.tensor`, on megatron-core. Imported only when the size exceeds 1.

megatron-core owns the matrix products with their all-reduces, the cut tables and the vocabulary-parallel cross
entropy; here they get the parameter names and signatures of the one-process forms.
"""

import warnings

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

with warnings.catch_warnings():
    # It warns that Transformer Engine and Apex are missing; the layers used here need neither.
    warnings.simplefilter("ignore")
    from megatron.core import ModelParallelConfig
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding, vocab_parallel_cross_entropy
    from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region, reduce_from_tensor_model_parallel_region

from uniaudio.pretrain.parallel.sequence import gathered_linear, scattered_linear, summed
from uniaudio.pretrain.parallel.tensor import Backend, FrameMode, TensorParallel, lookup

LOSS_CHUNK = 8192  # codes whose logits exist at once


def _config(tensor: TensorParallel) -> ModelParallelConfig:
    # CPU initialization allocates on the CPU (the caller moves the model) and needs no CUDA random state.
    return ModelParallelConfig(tensor_model_parallel_size=tensor.size, use_cpu_initialization=True, perform_initialization=False)


def _no_extra_state(layer: nn.Module) -> None:
    """Drops the hook that adds Transformer Engine's `_extra_state`: state dicts keep the names of the plain layers."""
    layer._load_state_dict_pre_hooks.clear()


class ColumnLinear(ColumnParallelLinear):
    """y_rank = x W_rank^T; the input's gradient is summed over the group."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def __init__(self, input_width: int, output_width: int, tensor: TensorParallel, *, bias_width: int) -> None:
        super().__init__(input_width, output_width, config=_config(tensor), init_method=nn.init.zeros_, bias=False, tp_group=tensor.group)
        _no_extra_state(self)
        self.sequence_group = tensor.sequence_group
        if bias_width:
            self.bias = nn.Parameter(torch.empty(bias_width // tensor.size))
        self.skip_bias_add = True

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(..., input) -> (..., output / size); adds `bias` where given."""
        output = super().forward(x)[0] if self.sequence_group is None else gathered_linear(x, self.weight, self.sequence_group)
        return output if bias is None else output + bias


class RowLinear(RowParallelLinear):
    """y = sum over ranks of x_rank W_rank^T, plus the bias once."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

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
        self.sequence_group = tensor.sequence_group
        _no_extra_state(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., input / size) -> (..., output)."""
        if self.sequence_group is None:
            return super().forward(x)[0]
        return scattered_linear(x, self.weight, self.sequence_group) + summed(self.bias, self.sequence_group)


class VocabularyEmbedding(VocabParallelEmbedding):
    """Each rank looks up its own rows; the sum over the group is the embedding."""

    def __init__(self, rows: int, width: int, tensor: TensorParallel) -> None:
        super().__init__(rows, width, config=_config(tensor), init_method=nn.init.zeros_, tp_group=tensor.group)

    def forward(
        self,
        codes_XQ: torch.Tensor,
        positions_X: torch.Tensor | None = None,
        position_table_PD: torch.Tensor | None = None,
        *,
        mode: FrameMode,
        backend: Backend,
    ) -> torch.Tensor:
        """As in one process, (X, D). Megatron's own forward would send every code's vector; a frame's are joined before the all-reduce."""
        own = (codes_XQ >= self.vocab_start_index) & (codes_XQ < self.vocab_end_index)
        vectors = lookup(torch.where(own, codes_XQ - self.vocab_start_index, 0), self.weight, backend=backend) * own.unsqueeze(-1)
        frames = vectors.sum(dim=1) if mode == "sum" else vectors.flatten(1)
        whole = reduce_from_tensor_model_parallel_region(frames, group=self.tp_group)
        if positions_X is None or position_table_PD is None:
            return whole
        return whole + lookup(positions_X, position_table_PD, backend=backend)


def _chunk_losses(hidden_XD: torch.Tensor, weight_VD: torch.Tensor, targets_X: torch.Tensor, num_valid_here: int) -> torch.Tensor:
    logits = torch.matmul(hidden_XD, weight_VD.t()).float()
    if num_valid_here < weight_VD.shape[0]:
        padding = torch.arange(weight_VD.shape[0], device=logits.device) >= num_valid_here
        logits = logits.masked_fill(padding, torch.finfo(torch.float32).min)
    return vocab_parallel_cross_entropy(logits, targets_X)


def vocabulary_cross_entropy(
    hidden_XD: torch.Tensor,
    weight_VD: torch.Tensor,
    *,
    targets_X: torch.Tensor,
    mask_X: torch.Tensor,
    num_valid: int,
    tensor: TensorParallel,
) -> torch.Tensor:
    """See `tensor.vocabulary_cross_entropy`; logits of a chunk of codes exist at a time, again in the backward pass."""
    rows = weight_VD.shape[0]
    num_valid_here = min(max(num_valid - tensor.rank * rows, 0), rows)
    hidden_XD = copy_to_tensor_model_parallel_region(hidden_XD, group=tensor.group)
    losses = [
        checkpoint(_chunk_losses, hidden, weight_VD, targets, num_valid_here, use_reentrant=False, preserve_rng_state=False)
        for hidden, targets in zip(hidden_XD.split(LOSS_CHUNK), targets_X.split(LOSS_CHUNK), strict=True)
    ]
    return torch.cat(losses) * mask_X.to(torch.float32)
