"""Cases of `variants` whose time is bytes: norm, activation, embedding, at the sizes of a step of 8 k frames of the 1 B model."""

from collections.abc import Callable
from functools import partial

import torch

from uniaudio.kernels.activation import reference as activation_reference
from uniaudio.kernels.activation import triton_kernels as activation
from uniaudio.kernels.benchmarks.case import Case, Results, backward_case, forms, forward_case
from uniaudio.kernels.benchmarks.measure import random
from uniaudio.kernels.embedding import reference as embedding_reference
from uniaudio.kernels.embedding import triton_kernels as embedding
from uniaudio.kernels.norm import reference as norm_reference
from uniaudio.kernels.norm import triton_kernels as norm
from uniaudio.kernels.packed_bias import triton_kernels as packed_bias

ROWS, WIDTH = 24_576, 1536
FRAMES, VOCABULARY, POSITIONS = 16_384, 4224, 3000
NORM_FORWARD = [norm.Launch(*form) for form in ((2, 4), (1, 2), (1, 4), (2, 8), (4, 8))]
NORM_BACKWARD = [
    norm.Launch(*form)
    for form in (
        (2, 8, 1, 4),
        (1, 4, 2, 4),
        (1, 4, 3, 3),
        (1, 4, 2, 5),
        (1, 4, 4, 2),
        (1, 8, 2, 4),
        (2, 8, 2, 2),
        (2, 16, 1, 4),
        (4, 16, 1, 2),
    )
]
GELU_FORWARD = [activation.Launch(*form) for form in ((2048, 1, 4), (1024, 1, 4), (1024, 1, 2), (2048, 1, 8), (1024, 2, 4), (512, 4, 8))]
GELU_BACKWARD = [
    activation.Launch(*form)
    for form in (
        (1024, 1, 8, 8),
        (1024, 1, 4, 8),
        (1024, 1, 4, 16),
        (512, 1, 4, 16),
        (512, 2, 4, 8),
        (1024, 1, 4, 4, 3),
        (1024, 2, 8, 2, 4),
    )
]
EMBEDDING_FORWARD = [embedding.Launch(*form) for form in ((2048, 4), (512, 1), (512, 2), (512, 4), (1024, 2), (1024, 4))]
EMBEDDING_BACKWARD = [
    embedding.Launch(*form) for form in ((512, 4, 8), (512, 2, 8), (512, 4, 16), (512, 2, 4), (256, 2, 8), (256, 4, 16), (1024, 4, 8))
]

PACKED_BIAS = [packed_bias.Launch(*form) for form in ((256, 16, 4, 8), (256, 16, 4, 4), (512, 8, 4, 8), (256, 32, 8, 4), (128, 32, 4, 8))]


def _norm_forward() -> Case:
    """add_layer_norm."""
    inputs = [random(ROWS, WIDTH, grad=False), random(ROWS, WIDTH, grad=False), random(WIDTH, grad=False), random(WIDTH, grad=False)]

    def plain(dtype: torch.dtype) -> Results:
        x, residual, weight, bias = (tensor.to(dtype) for tensor in inputs)
        total = (x + residual).to(inputs[0].dtype)  # the norm is of the sum as it is stored
        return {"normed": norm_reference.layer_norm(total.to(dtype), weight, bias, 1e-5), "total": total}

    def run(launch: norm.Launch) -> Results:
        x, residual, weight, bias = inputs
        return dict(zip(("normed", "total"), norm.forward(x, residual, weight, bias, 1e-5, launch)))

    same, float32 = partial(plain, inputs[0].dtype), partial(plain, torch.float32)
    return Case(forms(NORM_FORWARD, run), "torch", lambda: same, float32, 0.0, 8.0 * ROWS * WIDTH)


def _norm_backward(sums: bool) -> Case:
    """Gradient of add_layer_norm whose sum is used too; with the row sums for two more biases or without."""
    inputs = {name: random(*shape, grad=False) for name, shape in (("x", (ROWS, WIDTH)), ("weight", (WIDTH,)), ("bias", (WIDTH,)))}
    x, weight, bias = inputs.values()
    grad, grad_total = random(ROWS, WIDTH, grad=False), random(ROWS, WIDTH, grad=False)
    _, _, means, scales = norm.forward(x, None, weight, bias, 1e-5)

    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return norm_reference.layer_norm(x, weight, bias, 1e-5), x * 1.0

    def run(launch: norm.Launch) -> tuple[torch.Tensor, ...]:
        return norm.backward(x, weight, means, scales, grad, grad_total, launch, sum_x=sums, sum_total=sums)

    return backward_case(NORM_BACKWARD, run, function, inputs, [grad, grad_total], 8.0 * x.numel())


def _gelu(backward: bool) -> Case:
    """bias_gelu exact."""
    inputs = {"x": random(ROWS, 4 * WIDTH, grad=False), "bias": random(4 * WIDTH, grad=False)}
    x, bias = inputs.values()
    function = partial(activation_reference.bias_gelu, approximate="exact")
    if backward:
        grad = random(ROWS, 4 * WIDTH, grad=False)
        return backward_case(
            GELU_BACKWARD, partial(activation.gelu_backward, x, bias, grad, True), function, inputs, [grad], 6.0 * x.numel()
        )
    return forward_case(GELU_FORWARD, partial(activation.gelu_forward, x, bias, True), function, inputs, 4.0 * x.numel())


def _embedding(backward: bool) -> Case:
    """frame_embedding of 16,384 frames of 3 codes and a position. Bytes: as in `run`, each row of a table and of the output once."""
    codes = 3
    inputs = {"table": random(VOCABULARY, WIDTH, grad=False), "positions": random(POSITIONS, WIDTH, grad=False)}
    table, places = inputs.values()
    ids, positions = torch.randint(0, VOCABULARY, (FRAMES, codes), device=table.device), torch.arange(FRAMES, device=table.device) % 1024

    def function(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return embedding_reference.frame_embedding(ids, table, positions, places, "sum")

    moved = 2.0 * (FRAMES + VOCABULARY + (POSITIONS if backward else 1024)) * WIDTH + 8 * FRAMES * (codes + 1)
    if backward:
        grad = random(FRAMES, WIDTH, grad=False)
        run = partial(embedding.gradients, ids, table, positions, places, grad, False)
        return backward_case(EMBEDDING_BACKWARD, run, function, inputs, [grad], moved)
    run = partial(embedding.forward, ids, table, positions, places, False)
    return forward_case(EMBEDDING_FORWARD, run, function, inputs, moved)


def _packed_bias() -> Case:
    """The bias's gradient from a packed gradient; the peer is that of a linear map with an expanded bias."""
    heads, width = 12, 128
    grad = random(ROWS, heads, 3, width, grad=False)

    def plain(dtype: torch.dtype) -> Results:
        query, _, value = grad.sum(0, dtype=dtype).unbind(1)
        return {"bias": torch.stack((query, value), dim=1)}

    def run(launch: packed_bias.Launch) -> Results:
        return {"bias": packed_bias.bias_gradient(grad, launch)}

    moved = 4.0 * ROWS * heads * width
    return Case(forms(PACKED_BIAS, run), "torch", lambda: partial(plain, grad.dtype), lambda: plain(torch.float32), 0.0, moved)


MEMORY_CASES: dict[str, Callable[[], Case]] = {
    "norm forward": _norm_forward,
    "norm backward": partial(_norm_backward, False),
    "norm backward, biases": partial(_norm_backward, True),
    "gelu forward": partial(_gelu, False),
    "gelu backward": partial(_gelu, True),
    "packed bias": _packed_bias,
    "embedding forward": partial(_embedding, False),
    "embedding backward": partial(_embedding, True),
}
