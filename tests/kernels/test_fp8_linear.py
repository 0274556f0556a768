"""fp8_linear: rows against their definition, the product against the same numbers in float64, gradients, errors."""

import pytest
import torch

from uniaudio.kernels.fp8_linear import fp8_linear
from uniaudio.kernels.fp8_linear.reference import FP8, quantize_rows


def test_rows_lose_at_most_half_a_step_of_e4m3(place) -> None:
    x = place.randn(7, 48) * place.randn(7, 1, scale=100.0)
    x[3] = 0
    values, scales = quantize_rows(x)
    assert values.dtype == FP8 and scales.shape == (7, 1)
    restored = values.float() * scales
    # Three bits behind the point: half a step is 1/16 of the value; below 2^-6 of e4m3's own range the steps stop shrinking.
    allowed = x.float().abs() / 16 + scales * 2**-10
    assert ((restored - x.float()).abs() <= allowed * 1.001).all()
    assert (restored[3] == 0).all()


def test_kernel_gives_the_same_rows(place, poisoned) -> None:
    from uniaudio.kernels.fp8_linear import triton_kernels

    for shape in ((5, 48), (3, 16), (2, 640)):
        x = place.randn(*shape)
        ours, truth = triton_kernels.quantize_rows(x), quantize_rows(x)
        torch.testing.assert_close(ours[1], truth[1], rtol=1e-6, atol=0)
        steps = (ours[0].float() - truth[0].float()).abs() / truth[0].float().abs().clamp(min=2**-6)
        assert (steps <= 0.126).all() and (steps > 0).float().mean() < 0.01, "a tie may round the other way"


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_product_and_gradients_are_those_of_the_quantised_numbers(backend, place) -> None:
    x, weight, upstream = place.randn(2, 5, 48), place.randn(32, 48, scale=0.1), place.randn(2, 5, 32)
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    out = fp8_linear(*leaves, backend=backend)
    gradients = torch.autograd.grad(out, leaves, upstream)

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        values, scales = quantize_rows(tensor)
        return values.double() * scales.double()

    rows, grads = x.view(-1, 48), upstream.view(-1, 32)
    truths = [
        rounded(rows) @ rounded(weight).t(),
        rounded(grads) @ rounded(weight.t().contiguous()).t(),
        grads.double().t() @ rows.double(),
    ]
    bound = 4 * torch.finfo(place.dtype).eps
    for ours, truth in zip((out.view(-1, 32), gradients[0].view(-1, 48), gradients[1]), truths):
        assert float((ours.double() - truth).norm() / truth.norm()) < bound + (2e-3 if backend == "triton" else 0.0)
    exact = rows.double() @ weight.double().t()
    assert float((out.view(-1, 32).double() - exact).norm() / exact.norm()) < 0.05, "and near what it stands for"


def test_errors() -> None:
    x, weight = torch.zeros(4, 48), torch.zeros(32, 48)
    with pytest.raises(ValueError, match=r"fp8_linear: shape of weight \| seen: \(24, 48\) \| allowed: multiples of 16"):
        fp8_linear(x, torch.zeros(24, 48), backend="torch")
    with pytest.raises(ValueError, match="fp8_linear: shapes of x and weight"):
        fp8_linear(torch.zeros(4, 32), weight, backend="torch")
    with pytest.raises(ValueError, match="fp8_linear: dtype of weight differs"):
        fp8_linear(x, weight.half(), backend="torch")
