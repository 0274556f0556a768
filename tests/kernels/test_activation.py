"""activation: bias + GELU (exact, tanh) and SwiGLU against float64; gradients; errors."""

import math

import pytest
import torch

from uniaudio.kernels.activation import bias_gelu, swiglu

SHAPES = [(1, 1), (5, 16), (3, 7, 48), (41, 520)]


def naive_gelu(x: torch.Tensor, bias: torch.Tensor, approximate: str) -> torch.Tensor:
    z = x + bias
    if approximate == "exact":
        return z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def naive_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, -1)
    return gate / (1 + torch.exp(-gate)) * up


def compare(functions, inputs, upstream, place, outputs_and_gradients, assert_as_good) -> None:
    """functions: kernel, plain, truth."""
    runs = [
        outputs_and_gradients(function, inputs, upstream, dtype)
        for function, dtype in zip(functions, (place.dtype, place.dtype, torch.float64))
    ]
    for index, triple in enumerate(zip(*runs)):
        assert_as_good(*triple, f"tensor {index} of outputs, then gradients")


@pytest.mark.parametrize("approximate", ["exact", "tanh"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias_gelu(shape, approximate, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    functions = [
        lambda x, bias: bias_gelu(x, bias, approximate=approximate, backend="triton"),
        lambda x, bias: bias_gelu(x, bias, approximate=approximate, backend="torch"),
        lambda x, bias: naive_gelu(x, bias, approximate),
    ]
    inputs = [place.randn(*shape, scale=2.0), place.randn(shape[-1])]
    compare(functions, inputs, [place.randn(*shape)], place, outputs_and_gradients, assert_as_good)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_swiglu(shape, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    functions = [lambda x: swiglu(x, backend="triton"), lambda x: swiglu(x, backend="torch"), naive_swiglu]
    inputs = [place.randn(*shape[:-1], 2 * shape[-1], scale=2.0)]
    compare(functions, inputs, [place.randn(*shape)], place, outputs_and_gradients, assert_as_good)


@pytest.mark.parametrize("approximate", ["exact", "tanh"])
def test_far_inputs_stay_finite(approximate, place) -> None:
    x = torch.tensor([[-60.0, -9.0, 0.0, 9.0, 60.0]], device=place.device, dtype=place.dtype).requires_grad_()
    out = bias_gelu(x, torch.zeros_like(x[0]), approximate=approximate, backend="triton")
    out.sum().backward()
    torch.testing.assert_close(out.detach().double().cpu(), torch.tensor([[0.0, 0, 0, 9, 60]]).double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double().cpu(), torch.tensor([[0.0, 0, 0.5, 1, 1]]).double(), atol=1e-3, rtol=1e-3)


def test_no_rows(place) -> None:
    bias = place.randn(8).requires_grad_()
    bias_gelu(place.randn(0, 8), bias, approximate="exact", backend="triton").sum().backward()
    assert torch.equal(bias.grad, torch.zeros_like(bias))
    assert swiglu(place.randn(0, 8), backend="triton").shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"approximate": "quick"}, "approximate"),
        ({"bias": torch.zeros(7)}, "shape of bias"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, "dtype of bias"),
        ({"bias": torch.zeros(8, device="meta")}, "device of bias"),
        ({"x": torch.zeros(8, 4).T}, "stride of x"),
        ({"x": torch.tensor(1.0)}, "shape of x"),
    ],
)
def test_bad_input_is_named(change, message) -> None:
    args = {"x": torch.zeros(4, 8), "bias": torch.zeros(8), "approximate": "exact", **change}
    with pytest.raises(ValueError, match=message):
        bias_gelu(args.pop("x"), args.pop("bias"), **args, backend="torch")


@pytest.mark.parametrize(("x", "message"), [(torch.zeros(4, 7), "shape of gate_up"), (torch.zeros(8, 4).T, "stride of gate_up")])
def test_bad_swiglu_input_is_named(x, message) -> None:
    with pytest.raises(ValueError, match=message):
        swiglu(x, backend="torch")
