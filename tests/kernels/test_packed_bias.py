"""packed_bias: the gradient of the query's and value's bias, that of the projection untouched, errors."""

import pytest
import torch

from uniaudio.kernels.packed_bias import packed_bias_gradient

# rows before the heads, N, H: one row, sizes that are no multiple of a tile, several tiles a program
SHAPES = [((1,), 1, 16), ((37,), 3, 24), ((2, 70), 2, 72), ((0,), 2, 16)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    rows, heads, width = shape
    product, bias, grad = place.randn(*rows, heads, 3, width), place.randn(heads, 2, width), place.randn(*rows, heads, 3, width)

    def added(product, bias):
        query, value = (bias - bias.detach()).unbind(1)
        return product + torch.stack((query, torch.zeros_like(query), value), dim=1)

    functions = [
        lambda *leaves: packed_bias_gradient(*leaves, backend="triton"),
        lambda *leaves: packed_bias_gradient(*leaves, backend="torch"),
        added,
    ]
    dtypes = (place.dtype, place.dtype, torch.float64)
    runs = [outputs_and_gradients(function, [product, bias], [grad], dtype) for function, dtype in zip(functions, dtypes)]
    for name, *tensors in zip(("packed", "gradient", "bias"), *runs):
        assert_as_good(*tensors, name)
    assert torch.equal(runs[0][0], product)
    assert torch.equal(runs[0][1], grad)


def test_a_bias_that_is_frozen_gets_no_gradient(place) -> None:
    packed, bias = place.randn(5, 2, 3, 16).requires_grad_(), place.randn(2, 2, 16)
    packed_bias_gradient(packed, bias, backend="triton").sum().backward()
    assert bias.grad is None
    assert torch.equal(packed.grad, torch.ones_like(packed))


GOOD = {"packed": torch.zeros(4, 2, 3, 16), "bias_N2H": torch.zeros(2, 2, 16)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packed": torch.zeros(4, 2, 2, 16)}, "shape of packed"),
        ({"packed": torch.zeros(2, 3, 16)}, "shape of packed"),
        ({"packed": torch.zeros(4, 16, 3, 2).transpose(1, 3)}, "stride of packed"),
        ({"bias_N2H": torch.zeros(2, 3, 16)}, "shape of bias_N2H"),
        ({"bias_N2H": torch.zeros(2, 2, 16).half()}, "dtype of bias_N2H"),
        ({"bias_N2H": torch.zeros(2, 2, 16, device="meta")}, "device of bias_N2H"),
    ],
)
def test_bad_input_is_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        packed_bias_gradient(**{**GOOD, **change}, backend="torch")
