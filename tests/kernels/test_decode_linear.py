"""decode_linear: every part of its epilogue against float64, int8 weights, odd shapes, row independence, and its errors."""

import pytest
import torch

from uniaudio.kernels.decode_linear import decode_linear
from uniaudio.kernels.decode_linear.interface import fold_norm, quantize_rows

# M, K, N: one row, sizes that are no multiple of a tile, more than a small tile, more than the kernels take; one warp, four
SHAPES = [(1, 64, 13), (3, 40, 9), (5, 300, 3), (20, 96, 130), (70, 24, 8), (1, 1536, 9), (2, 2560, 3)]
FORMS = {
    "plain": {},
    "bias": {"bias"},
    "normed": {"bias", "norm"},
    "up": {"bias", "norm", "exact"},
    "up_tanh": {"bias", "norm", "tanh"},
    "down": {"bias", "residual"},
    "int8": {"bias", "norm", "residual", "int8"},
}


def arguments(shape, form, place) -> tuple[list, dict]:
    """Inputs of `decode_linear` in the place's precision; the vectors are float32."""
    rows, inputs, outputs = shape
    x, weight = place.randn(rows, inputs) + 0.5, place.randn(outputs, inputs, scale=inputs**-0.5)
    named: dict[str, object] = {"gelu": next((name for name in ("exact", "tanh") if name in form), None)}
    if "int8" in form:
        weight, named["scale_N"] = quantize_rows(weight)
    if "norm" in form:
        scale = named.get("scale_N", torch.ones(outputs, device=weight.device))
        named["norm_sums_N"] = (weight.double().sum(1) * scale.double()).float()
    if "residual" in form:
        named["residual_MN"] = place.randn(rows, outputs)
    return [x, weight, place.randn(outputs).float() if "bias" in form else None], named


def doubled(value: object) -> object:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output(shape, form, place, poisoned, assert_as_good) -> None:
    given, named = arguments(shape, FORMS[form], place)
    truth = decode_linear(*map(doubled, given), **{name: doubled(value) for name, value in named.items()}, backend="torch")
    plain = decode_linear(*given, **named, backend="torch")
    assert_as_good(decode_linear(*given, **named, backend="triton"), plain, truth, "output")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_folded_norm_is_the_norm_before_the_product(backend) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, weight, bias, gain, shift = (torch.randn(*shape, device=device) for shape in [(3, 16), (8, 16), (8,), (16,), (16,)])
    folded, folded_bias = fold_norm(weight, bias, gain, shift)
    expected = torch.nn.functional.layer_norm(x, (16,), gain, shift) @ weight.T + bias
    result = decode_linear(x, folded, folded_bias, norm_sums_N=folded.sum(1), backend=backend)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_int8_rows_err_by_half_a_step_at_most() -> None:
    weight = torch.randn(5, 40)
    integers, scale = quantize_rows(weight)
    assert integers.dtype == torch.int8
    assert ((integers * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-7).all()


@pytest.mark.parametrize("inputs", [300, 1536])
def test_a_row_does_not_depend_on_the_rows_beside_it(inputs, place) -> None:
    given, named = arguments((6, inputs, 3), FORMS["up"], place)
    together = decode_linear(*given, **named, backend="triton")
    for rows in (1, 5):
        assert torch.equal(decode_linear(given[0][:rows].contiguous(), *given[1:], **named, backend="triton"), together[:rows])


@pytest.mark.parametrize(("rows", "outputs"), [(0, 8), (3, 0), (0, 0)])
def test_no_rows_or_no_outputs_launch_nothing(place, rows, outputs):
    x, weight = torch.zeros(rows, 16, device=place.device), torch.zeros(outputs, 16, device=place.device)
    assert decode_linear(x, weight, backend="triton").shape == (rows, outputs)


@pytest.mark.parametrize("launch", [(8, 32, 1, 1), (16, 64, 2, 2), (64, 16, 3, 4)], ids=str)
def test_every_launch_gives_the_same(launch, place, assert_as_good) -> None:
    from uniaudio.kernels.decode_linear import triton_kernels

    (x, weight, bias), _ = arguments((4, 100, 70), FORMS["bias"], place)
    truth = decode_linear(x.double(), weight.double(), bias.double(), backend="torch")
    result = triton_kernels.decode_linear(
        triton_kernels.Operands(x, weight, bias, None, None, 1e-5, None, None), triton_kernels.Launch(*launch)
    )
    assert_as_good(result, decode_linear(x, weight, bias, backend="torch"), truth, "output")


def test_a_chain_of_early_launches_gives_the_same(place) -> None:
    weights = [place.randn(*shape, scale=0.2) for shape in [(8, 4), (4, 8)] * 2]
    x, sums = place.randn(2, 4), [weight.float().sum(1) for weight in weights]
    results = []
    for early in (False, True):
        hidden = x.clone()  # an ordinary launch behind those that made the weights
        for up, down, up_sums in zip(weights[::2], weights[1::2], sums[::2], strict=True):
            wide = decode_linear(hidden, up, sums[0], norm_sums_N=up_sums, gelu="exact", early=early, backend="triton")
            hidden = decode_linear(wide, down, residual_MN=hidden, early=early, backend="triton")
        results.append(hidden)
    assert torch.equal(*results)


X, W = torch.zeros(2, 16), torch.zeros(8, 16)


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        ((X[0], W), {}, "shape of x_MK"),
        ((X, W[:, :8]), {}, "shape of weight_NK"),
        ((X, W.half()), {}, "dtype of weight_NK"),
        ((X, W.to(torch.int8)), {}, "scale_N"),
        ((X, W), {"scale_N": torch.ones(8)}, "scale_N beside weights of"),
        ((X, W, torch.zeros(7)), {}, "shape of bias_N"),
        ((X, W, torch.zeros(8, dtype=torch.float16)), {}, "dtype of bias_N"),
        ((X, W), {"gelu": "fast"}, "gelu"),
        ((X, W), {"residual_MN": torch.zeros(2, 7)}, "shape of residual_MN"),
        ((X, torch.zeros(16, 8).T), {}, "stride of weight_NK"),
    ],
)
def test_bad_input_is_named(given, named, message) -> None:
    with pytest.raises(ValueError, match=message):
        decode_linear(*given, **named, backend="torch")


def test_integers_are_not_quantized() -> None:
    with pytest.raises(ValueError, match="dtype of weights to quantize"):
        quantize_rows(torch.zeros(2, 2, dtype=torch.int32))
