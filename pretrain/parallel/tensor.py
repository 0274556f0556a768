"""Layers and losses that know tensor parallelism: plain PyTorch for one process, megatron-core for more.

Owns which dimension of which parameter is cut (`partition_dim`) and the communication around it. Does not own the
initial values (`pretrain.model.init`) nor process groups (`pretrain.parallel.layout`).

Both forms of a layer have the same parameter names, so a checkpoint by name fits every size. A cut parameter carries
`partition_dim` (0: rows of the output, 1: columns of the input); a table over the vocabulary also carries
`valid_rows`, its rows before padding. Shapes at the border: hidden states (..., D) whole on every rank of the group;
between a column and a row linear, each rank holds its slice of the last dimension.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from uniaudio.kernels.embedding import frame_embedding
from uniaudio.kernels.fp8_linear import fp8_linear
from uniaudio.kernels.loss import linear_cross_entropy

VOCABULARY_ALIGNMENT = 128
Backend = Literal["torch", "triton"]
FrameMode = Literal["sum", "concat"]


def choose_backend(kernels: Literal["auto", "triton", "torch"], device: torch.device) -> Backend:
    """`model.kernels` on this device: auto is triton on CUDA, torch elsewhere."""
    if kernels == "auto":
        return "triton" if device.type == "cuda" else "torch"
    return kernels


@dataclass(frozen=True)
class TensorParallel:
    """This process in its tensor-parallel group; the default is one process and needs no process group.

    sequence: between the products each rank holds its part of the tokens only (`pretrain.parallel.sequence`).
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    sequence: bool = False

    @property
    def sequence_group(self) -> dist.ProcessGroup | None:
        """The group that the tokens are cut over; None where every rank has all of them."""
        return self.group if self.sequence else None


def padded_rows(vocabulary_size: int, tensor: TensorParallel) -> int:
    """Rows of a table over the vocabulary: padded to a multiple of 128 x the tensor-parallel size."""
    multiple = VOCABULARY_ALIGNMENT * tensor.size
    return -(-vocabulary_size // multiple) * multiple


def mark_cut(parameter: nn.Parameter, dim: int, tensor: TensorParallel, *, valid_rows: int | None = None) -> nn.Parameter:
    """Notes on the parameter that `dim` is cut over the group, under the names that megatron-core and DeepSpeed read."""
    parameter.partition_dim = dim
    parameter.partition_stride = 1
    parameter.tensor_model_parallel = tensor.size > 1
    if valid_rows is not None:
        parameter.valid_rows = valid_rows
    return parameter


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, fp8: Backend | None) -> torch.Tensor:
    if fp8 is None:
        return F.linear(x, weight, bias)
    product = fp8_linear(x, weight, backend=fp8)
    return product if bias is None else product + bias


class ColumnLinear(nn.Module):
    """y = x W^T on one process; weight (output, input). `fp8`: the path of a product in 8 bits, None for one in the weight's dtype.

    adapter: what is added to the product in fine-tuning (`pretrain.model.adapters`).
    """

    fp8: Backend | None = None

    def __init__(self, input_width: int, output_width: int, *, bias_width: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_width, input_width))
        self.bias = nn.Parameter(torch.empty(bias_width)) if bias_width else None
        self.adapter: nn.Module | None = None

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(..., input) -> (..., output); adds `bias` (output,) where given: the module's own is left to the caller."""
        product = _linear(x, self.weight, bias, self.fp8)
        return product if self.adapter is None else product + self.adapter(x)


class RowLinear(nn.Module):
    """y = x W^T + b on one process; weight (output, input). `fp8`, `adapter` as above.

    bias_gradient_elsewhere: the caller gives the bias its gradient where the sum over rows costs nothing.
    """

    fp8: Backend | None = None
    bias_gradient_elsewhere = False

    def __init__(self, input_width: int, output_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_width, input_width))
        self.bias = nn.Parameter(torch.empty(output_width))
        self.adapter: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., input) -> (..., output)."""
        product = _linear(x, self.weight, self.bias.detach() if self.bias_gradient_elsewhere else self.bias, self.fp8)
        return product if self.adapter is None else product + self.adapter(x)


def lookup(rows: torch.Tensor, table_RD: torch.Tensor, *, backend: Backend) -> torch.Tensor:
    """Rows of a table, int (...) -> (..., D). The gradient of torch's own embedding makes the host wait: it counts different rows there."""
    return frame_embedding(rows.reshape(-1, 1), table_RD, mode="sum", backend=backend).unflatten(0, rows.shape)


class VocabularyEmbedding(nn.Module):
    """A table over the padded vocabulary on one process; weight (rows, width)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(
        self,
        codes_XQ: torch.Tensor,
        positions_X: torch.Tensor | None = None,
        position_table_PD: torch.Tensor | None = None,
        *,
        mode: FrameMode,
        backend: Backend,
    ) -> torch.Tensor:
        """The Q embeddings of each frame summed or side by side, plus its row of a table of positions where one is given, (X, D)."""
        return frame_embedding(codes_XQ, self.weight, positions_X, position_table_PD, mode=mode, backend=backend)


def column_linear(input_width: int, output_width: int, tensor: TensorParallel, *, bias_width: int = 0) -> nn.Module:
    """A linear map whose output is cut over the group; `forward(x, bias=None)`.

    Its own bias has `bias_width` entries (0: none), cut like the output, and is not added by `forward`: the caller
    fuses it with what follows, or expands it (the packed projection has no bias on the key).
    """
    if tensor.size == 1:
        layer: nn.Module = ColumnLinear(input_width, output_width, bias_width=bias_width)
    else:
        from uniaudio.pretrain.parallel import megatron

        layer = megatron.ColumnLinear(input_width, output_width, tensor, bias_width=bias_width)
    mark_cut(layer.weight, 0, tensor)
    if layer.bias is not None:
        mark_cut(layer.bias, 0, tensor)
    return layer


def row_linear(input_width: int, output_width: int, tensor: TensorParallel) -> nn.Module:
    """A linear map whose input is cut over the group; its output is the whole sum plus the bias; `forward(x)`."""
    if tensor.size == 1:
        layer: nn.Module = RowLinear(input_width, output_width)
    else:
        from uniaudio.pretrain.parallel import megatron

        layer = megatron.RowLinear(input_width, output_width, tensor)
    mark_cut(layer.weight, 1, tensor)
    return layer


def vocabulary_embedding(vocabulary_size: int, width: int, tensor: TensorParallel) -> nn.Module:
    """A table over the vocabulary whose rows are cut over the group; `forward` as in VocabularyEmbedding."""
    rows = padded_rows(vocabulary_size, tensor)
    if tensor.size == 1:
        layer: nn.Module = VocabularyEmbedding(rows, width)
    else:
        from uniaudio.pretrain.parallel import megatron

        layer = megatron.VocabularyEmbedding(rows, width, tensor)
    mark_cut(layer.weight, 0, tensor, valid_rows=vocabulary_size)
    return layer


def vocabulary_projection(vocabulary_size: int, width: int, tensor: TensorParallel) -> nn.Module:
    """The map to logits, (rows, D) without bias, its rows cut over the group; its weight goes to the two functions below."""
    layer = column_linear(width, padded_rows(vocabulary_size, tensor), tensor)
    mark_cut(layer.weight, 0, tensor, valid_rows=vocabulary_size)
    return layer


def vocabulary_cross_entropy(
    hidden_XD: torch.Tensor,
    weight_VD: torch.Tensor,
    *,
    targets_X: torch.Tensor,
    mask_X: torch.Tensor,
    num_valid: int,
    tensor: TensorParallel,
    backend: Backend,
    count: int | None = None,
) -> torch.Tensor:
    """Cross entropy of each code in float32, 0 where `mask_X` is 0; the whole logits never exist at once. (X,).

    `count`: codes that the mask counts, where it is known. On several ranks the torch path is megatron-core's vocabulary-parallel cross
    entropy, the triton path the kernel's own.
    """
    if tensor.size == 1 or backend == "triton":
        return linear_cross_entropy(
            hidden_XD, weight_VD, targets_X, mask_X, num_valid=num_valid, backend=backend, group=tensor.group, count=count
        )
    from uniaudio.pretrain.parallel import megatron

    return megatron.vocabulary_cross_entropy(hidden_XD, weight_VD, targets_X=targets_X, mask_X=mask_X, num_valid=num_valid, tensor=tensor)


def vocabulary_logits(hidden: torch.Tensor, weight_VD: torch.Tensor, *, num_valid: int, tensor: TensorParallel) -> torch.Tensor:
    """(..., D) -> (..., num_valid) on every rank, padding rows cut. For evaluation: no gradient flows across ranks."""
    logits = F.linear(hidden, weight_VD)
    if tensor.size > 1:
        parts = [torch.empty_like(logits) for _ in range(tensor.size)]
        dist.all_gather(parts, logits.detach().contiguous(), group=tensor.group)
        logits = torch.cat(parts, dim=-1)
    return logits[..., :num_valid]


def whole_rows(rows_VD: torch.Tensor, tensor: TensorParallel) -> torch.Tensor:
    """A table whose rows are cut over the group, whole on every rank. No gradient flows across ranks."""
    if tensor.size == 1:
        return rows_VD
    parts = [torch.empty_like(rows_VD) for _ in range(tensor.size)]
    dist.all_gather(parts, rows_VD.detach().contiguous(), group=tensor.group)
    return torch.cat(parts)
