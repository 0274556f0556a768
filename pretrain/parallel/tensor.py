"""Layers that know tensor parallelism: plain PyTorch for one process, megatron-core for more.

Owns which dimension of which parameter is cut (`partition_dim`) and the communication around it. Does not own the
initial values (`pretrain.model.init`) nor process groups (`pretrain.parallel.layout`).

Only the global blocks' products are cut: their attention needs all frames of a document. Everything else (embedding, link, local blocks,
head) never leaves a frame, so every rank has it whole and applies it to its own frames; the gradients of what is whole are therefore sums
over a rank's own tokens, and the engine adds them up over the group once a step (`pretrain.parallel.whole_gradients`).

Both forms of a layer have the same parameter names, so a checkpoint by name fits every size. A parameter that can be cut carries
`partition_dim` (0: rows of the output, 1: columns of the input) and, where it is, `tensor_model_parallel`; a table over the vocabulary
also carries `valid_rows`, its rows before padding. Shapes at the border: hidden states (..., D) of the own tokens; between a column and a
row linear, each rank holds its slice of the last dimension of all tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from uniaudio.errors import UserError
from uniaudio.kernels.checks import interpreted
from uniaudio.kernels.embedding import frame_embedding
from uniaudio.kernels.fp8_linear import fp8_linear

VOCABULARY_ALIGNMENT = 128
Backend = Literal["torch", "triton"]
FrameMode = Literal["sum", "concat"]


def choose_backend(kernels: Literal["auto", "triton", "torch"], device: torch.device) -> Backend:
    """`model.kernels` on this device: auto is triton on CUDA, torch elsewhere; UserError where triton is asked for and cannot run."""
    if kernels == "auto":
        return "triton" if device.type == "cuda" else "torch"
    if kernels == "triton" and device.type != "cuda" and not interpreted():
        raise UserError("model.kernels=triton needs CUDA", seen=f"device {device.type}", remedy="set model.kernels=auto")
    return kernels


@dataclass(frozen=True)
class TensorParallel:
    """This process in its tensor-parallel group; the default is one process and needs no process group."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    def own(self, tokens: int) -> slice:
        """This rank's part of so many tokens. Raises ValueError where they cannot be cut in equal parts."""
        if tokens % self.size:
            raise ValueError(f"tokens to cut over the tensor-parallel ranks | seen: {tokens} | allowed: multiples of {self.size}")
        part = tokens // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


def padded_rows(vocabulary_size: int) -> int:
    """Rows of a table over the vocabulary."""
    return -(-vocabulary_size // VOCABULARY_ALIGNMENT) * VOCABULARY_ALIGNMENT


def is_cut(parameter: nn.Parameter) -> bool:
    """Whether each rank of the tensor-parallel group holds another part of the parameter; else each holds the whole."""
    return getattr(parameter, "tensor_model_parallel", False)


def mark_cut(parameter: nn.Parameter, dim: int, tensor: TensorParallel, *, valid_rows: int | None = None) -> nn.Parameter:
    """Notes on the parameter that `dim` is cut over the group (of one: could be), under the names that megatron-core and DeepSpeed read."""
    parameter.partition_dim = dim
    parameter.partition_stride = 1
    parameter.tensor_model_parallel = tensor.size > 1
    if valid_rows is not None:
        parameter.valid_rows = valid_rows
    return parameter


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, fp8: Backend | None) -> torch.Tensor:
    return F.linear(x, weight, bias) if fp8 is None else fp8_linear(x, weight, bias, backend=fp8)


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


def vocabulary_embedding(vocabulary_size: int, width: int) -> VocabularyEmbedding:
    """A table over the vocabulary, whole on every rank."""
    layer = VocabularyEmbedding(padded_rows(vocabulary_size), width)
    mark_cut(layer.weight, 0, TensorParallel(), valid_rows=vocabulary_size)
    return layer


def vocabulary_projection(vocabulary_size: int, width: int) -> ColumnLinear:
    """The map to logits, (rows, D) without bias, whole on every rank; the head takes its weight."""
    layer = ColumnLinear(width, padded_rows(vocabulary_size))
    mark_cut(layer.weight, 0, TensorParallel(), valid_rows=vocabulary_size)
    return layer
