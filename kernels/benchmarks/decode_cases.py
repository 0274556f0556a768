"""Cases of `variants` for decode_linear: the linear maps of the 1 B model's generation at batch 1 and 64, in bf16 and with int8 weights.

One call is a map of all layers, each with weights of its own, in a CUDA graph, as generation launches them: no weight is in the L2 cache.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from uniaudio.kernels.benchmarks.case import Case, Results, forms
from uniaudio.kernels.benchmarks.measure import random
from uniaudio.kernels.decode_linear import reference
from uniaudio.kernels.decode_linear import triton_kernels as decode_linear
from uniaudio.kernels.decode_linear.few_rows import FewRows, few_rows, few_rows_launch
from uniaudio.kernels.decode_linear.interface import quantize_rows
from uniaudio.kernels.decode_linear.triton_kernels import Launch, Operands
from uniaudio.kernels.device import streaming_multiprocessors
from uniaudio.kernels.early import starts_early

LAYERS, EPS = 24, 1e-5
SHARED_BYTES = 220_000


@dataclass(frozen=True)
class Map:
    """A linear map with what is around it in a block: the norm before it and a GELU behind it, or the residual added to it."""

    outputs: int
    inputs: int
    normed: bool
    gelu: str | None = None


MAPS = {
    "qkv": Map(4608, 1536, normed=True),
    "out": Map(1536, 1536, normed=False),
    "up": Map(6144, 1536, normed=True, gelu="exact"),
    "down": Map(1536, 6144, normed=False),
}


@dataclass(frozen=True)
class Layer:
    """The tensors of one layer's map: weight (N, K), bias (N,), scale (N,) of int8 weights, norm_sums (N,) behind a norm."""

    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor | None
    norm_sums: torch.Tensor | None


def _layer(shape: Map, int8: bool) -> Layer:
    """Random weights, as `pretrain.model.decode_weights` keeps them."""
    weight = random(shape.outputs, shape.inputs, grad=False) * shape.inputs**-0.5
    bias = random(shape.outputs, grad=False).float()
    weight, scale = quantize_rows(weight) if int8 else (weight, None)
    sums = weight.sum(1, dtype=torch.float32) * (1.0 if scale is None else scale)
    return Layer(weight, bias, scale, sums if shape.normed else None)


def launches(shape: Map, rows: int, weight_bytes: int, used: Launch) -> Iterator[Launch]:
    """`used` first, then those whose tiles fit into shared memory, give every warp work and occupy half of the multiprocessors."""
    yield used
    for outputs, depth, stages, warps in itertools.product((8, 16, 32, 64), (128, 256, 512), (3, 5), (2, 4)):
        tiles = depth * stages * (outputs * weight_bytes + max(16, rows) * 2)
        launch = Launch(outputs, depth, stages, warps)
        if tiles < SHARED_BYTES and outputs * depth >= 512 * warps and shape.outputs // outputs >= 60 and launch != used:
            yield launch


def few_launches(shape: Map, weight_bytes: int, used: FewRows) -> Iterator[FewRows]:
    """`used` first, then those that hold at most 128 registers of weights a thread."""
    yield used
    for outputs, warps in itertools.product((1, 2, 4, 8), (1, 2, 4, 8)):
        launch = FewRows(outputs, warps, used.group)
        if outputs * shape.inputs * weight_bytes <= 128 * 128 * warps and launch != used:
            yield launch


def _decode(name: str, rows: int, int8: bool) -> Case:
    """decode_linear of `rows` rows, `LAYERS` calls; the peer is its backend torch."""
    shape = MAPS[name]
    layers = [_layer(shape, int8) for _ in range(LAYERS)]
    x = random(rows, shape.inputs, grad=False)
    residual = None if shape.normed else random(rows, shape.outputs, grad=False)
    weight = layers[0].weight

    def run(launch: Launch | FewRows) -> Results:
        def of(layer: Layer) -> torch.Tensor:
            given = (x, layer.weight, layer.bias, layer.scale, layer.norm_sums, EPS, shape.gelu, residual)
            if isinstance(launch, FewRows):
                return few_rows(Operands(*given), launch, starts_early(x.device))
            return decode_linear.decode_linear(Operands(*given), launch)

        return {f"layer {index}": of(layer) for index, layer in enumerate(layers)}

    def plain(dtype: torch.dtype) -> Results:
        added = None if residual is None else residual.to(dtype)
        return {
            f"layer {index}": reference.decode_linear(
                x.to(dtype), layer.weight if int8 else layer.weight.to(dtype), layer.bias, layer.scale, shape.normed, EPS, shape.gelu, added
            )
            for index, layer in enumerate(layers)
        }

    few = few_rows_launch(rows, shape.outputs, shape.inputs, x.dtype)
    if few is not None:
        tried = forms(few_launches(shape, weight.element_size(), few), run)
    else:
        used = decode_linear.default_launch(rows, shape.outputs, shape.inputs, streaming_multiprocessors(x.device), x.dtype)
        tried = forms(launches(shape, rows, weight.element_size(), used), run)
    moved = weight.numel() * weight.element_size() + 2 * (x.numel() + (2 - shape.normed) * rows * shape.outputs)
    return Case(
        tried, "torch", lambda: partial(plain, x.dtype), lambda: plain(torch.float32),
        2.0 * rows * weight.numel() * LAYERS, float(moved * LAYERS), graph=True,
    )  # fmt: skip


DECODE_CASES: dict[str, Callable[[], Case]] = {
    f"decode {name} {rows} {kind}": partial(_decode, name, rows, kind == "int8")
    for name in MAPS
    for rows in (1, 64)
    for kind in ("bf16", "int8")
}
