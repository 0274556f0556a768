"""norm: LayerNorm and RMSNorm, with and without the residual, against float64; gradients; errors."""

import pytest
import torch

from uniaudio.kernels.norm import add_layer_norm, add_rms_norm, branch_layer_norm, layer_norm, rms_norm

SHAPES = [(2, 24), (5, 16), (3, 7, 48), (37, 96), (9, 1536)]


def naive(total: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    if bias is not None:
        total = total - total.mean(-1, keepdim=True)
    unit = total / (total.square().mean(-1, keepdim=True) + eps).sqrt()
    return unit * weight if bias is None else unit * weight + bias


def tensors(place, shape):
    return [place.randn(*shape), place.randn(*shape), place.randn(shape[-1]) + 1, place.randn(shape[-1])]


def compare(functions, inputs, upstream, place, outputs_and_gradients, assert_as_good) -> None:
    """functions: kernel, plain, truth."""
    runs = [
        outputs_and_gradients(function, inputs, upstream, dtype)
        for function, dtype in zip(functions, (place.dtype, place.dtype, torch.float64))
    ]
    for index, triple in enumerate(zip(*runs)):
        assert_as_good(*triple, f"tensor {index} of outputs, then gradients")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm(shape, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    x, _, weight, bias = tensors(place, shape)
    functions = [
        lambda *args: layer_norm(*args, 1e-5, backend="triton"),
        lambda *args: layer_norm(*args, 1e-5, backend="torch"),
        lambda *args: naive(*args, 1e-5),
    ]
    compare(functions, [x, weight, bias], [place.randn(*shape)], place, outputs_and_gradients, assert_as_good)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_layer_norm(shape, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    functions = [
        lambda *args: add_layer_norm(*args, 1e-5, backend="triton"),
        lambda *args: add_layer_norm(*args, 1e-5, backend="torch"),
        lambda x, residual, weight, bias: (naive(x + residual, weight, bias, 1e-5), x + residual),
    ]
    upstream = [place.randn(*shape), place.randn(*shape)]
    compare(functions, tensors(place, shape), upstream, place, outputs_and_gradients, assert_as_good)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_gradients_of_biases_before_and_after_the_sum(shape, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    def kernel(x, residual, weight, bias, before, after, backend="triton"):
        x = x + before.detach()
        normed, total = add_layer_norm(x, residual, weight, bias, 1e-5, x_bias=before, total_bias=after, backend=backend)
        return normed, total + after.detach()

    def truth(x, residual, weight, bias, before, after):
        return naive(x + before + residual, weight, bias, 1e-5), x + before + residual + after

    functions = [kernel, lambda *args: kernel(*args, backend="torch"), truth]
    inputs = [*tensors(place, shape), place.randn(shape[-1]), place.randn(shape[-1])]
    compare(functions, inputs, [place.randn(*shape), place.randn(*shape)], place, outputs_and_gradients, assert_as_good)


def test_biases_get_their_gradients_where_only_the_sum_is_used(place) -> None:
    before, after = torch.zeros(24, dtype=place.dtype, device=place.device), torch.zeros(24, dtype=place.dtype, device=place.device)
    x, weight = place.randn(5, 24), place.randn(24)
    leaves = [before.requires_grad_(), after.requires_grad_()]
    _, total = add_layer_norm(x, x, weight, weight, 1e-5, x_bias=before, total_bias=after, backend="triton")
    for gradient in torch.autograd.grad(total.sum(), leaves):
        assert torch.equal(gradient, torch.full_like(gradient, 5))


@pytest.mark.parametrize("name", ["x_bias", "total_bias"])
def test_wrong_bias_is_named(name) -> None:
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    with pytest.raises(ValueError, match=f"shape of {name}"):
        add_layer_norm(x, x, weight, weight, 1e-5, backend="torch", **{name: torch.zeros(7)})
    with pytest.raises(ValueError, match=f"dtype of {name}"):
        add_layer_norm(x, x, weight, weight, 1e-5, backend="torch", **{name: weight.half()})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_branch_layer_norm_adds_both_gradients(shape, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    x, _, weight, bias = tensors(place, shape)
    functions = [
        lambda *args: branch_layer_norm(*args, 1e-5, backend="triton"),
        lambda *args: branch_layer_norm(*args, 1e-5, backend="torch"),
        lambda x, weight, bias: (naive(x, weight, bias, 1e-5), x),
    ]
    compare(functions, [x, weight, bias], [place.randn(*shape), place.randn(*shape)], place, outputs_and_gradients, assert_as_good)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norms(shape, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    x, residual, weight, _ = tensors(place, shape)
    single = [
        lambda *args: rms_norm(*args, 1e-5, backend="triton"),
        lambda *args: rms_norm(*args, 1e-5, backend="torch"),
        lambda x, weight: naive(x, weight, None, 1e-5),
    ]
    compare(single, [x, weight], [place.randn(*shape)], place, outputs_and_gradients, assert_as_good)
    added = [
        lambda *args: add_rms_norm(*args, 1e-5, backend="triton"),
        lambda *args: add_rms_norm(*args, 1e-5, backend="torch"),
        lambda x, residual, weight: (naive(x + residual, weight, None, 1e-5), x + residual),
    ]
    upstream = [place.randn(*shape), place.randn(*shape)]
    compare(added, [x, residual, weight], upstream, place, outputs_and_gradients, assert_as_good)


@pytest.mark.parametrize("used", [0, 1])
def test_one_unused_output(used, place) -> None:
    inputs = [tensor.requires_grad_() for tensor in tensors(place, (5, 16))]
    upstream = place.randn(5, 16)
    grads = {
        backend: torch.autograd.grad(add_layer_norm(*inputs, 1e-5, backend=backend)[used], inputs, upstream, allow_unused=True)
        for backend in ("torch", "triton")
    }
    for mine, plain in zip(grads["triton"], grads["torch"]):
        assert (mine is None) == (plain is None)
        if mine is not None:
            torch.testing.assert_close(mine, plain, rtol=2e-2 if place.dtype != torch.float32 else 1e-5, atol=2e-2)


def test_mean_far_from_zero_keeps_its_digits(place) -> None:
    x = place.randn(4, 96) + 200.0
    weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
    expected = naive(x.double(), weight.double(), bias.double(), 1e-5)
    out = layer_norm(x, weight, bias, 1e-5, backend="triton")
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)


def test_weight_gradient_is_deterministic(place) -> None:
    x, residual, weight, bias = (tensor.requires_grad_() for tensor in tensors(place, (61, 48)))
    upstream = place.randn(61, 48)
    runs = [
        torch.autograd.grad(add_layer_norm(x, residual, weight, bias, 1e-5, backend="triton")[0], [weight, bias], upstream)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16)])
def test_no_rows(shape, place) -> None:
    x, residual, weight, bias = (tensor.requires_grad_() for tensor in tensors(place, shape))
    normed, _ = add_layer_norm(x, residual, weight, bias, 1e-5, backend="triton")
    normed.sum().backward()
    assert normed.shape == shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 8, dtype=torch.int64)}, "dtype of x"),
        ({"residual": torch.zeros(4, 8, dtype=torch.float16)}, "dtype of residual"),
        ({"residual": torch.zeros(3, 8)}, "shape of residual"),
        ({"weight": torch.zeros(9)}, "shape of weight"),
        ({"bias": torch.zeros(4)}, "shape of bias"),
        ({"x": torch.zeros(8, 4).T}, "stride of x"),
        ({"x": torch.tensor(1.0)}, "shape of x"),
        ({"weight": torch.zeros(8, device="meta")}, "device of weight"),
    ],
)
def test_bad_input_is_named(change, message) -> None:
    args = {"x": torch.zeros(4, 8), "residual": torch.zeros(4, 8), "weight": torch.zeros(8), "bias": torch.zeros(8), **change}
    with pytest.raises(ValueError, match=message):
        add_layer_norm(**args, eps=1e-5, backend="torch")
