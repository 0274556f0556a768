"""rotary: outputs and gradients of both paths, what makes it rotary, errors."""

import pytest
import torch

from uniaudio.kernels.rotary import rotate

# X, N, H: one row, no multiple of a tile, a head that is no power of two, no rows
SHAPES = [(1, 1, 16), (37, 3, 24), (130, 2, 64), (5, 2, 96), (0, 2, 16)]


def direct(packed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Each pair as a complex number times e^(i angle)."""
    half = packed.shape[-1] // 2
    angles = positions.double()[:, None] * 10_000.0 ** (-torch.arange(half, device=packed.device).double() / half)
    pairs = torch.complex(packed[:, :, :2, :half].double(), packed[:, :, :2, half:].double())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None, None]
    return torch.cat((torch.cat((turned.real, turned.imag), -1).to(packed.dtype), packed[:, :, 2:]), dim=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_outputs_and_gradients(shape, integer, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    rows, heads, width = shape
    packed, grad = place.randn(rows, heads, 3, width), place.randn(rows, heads, 3, width)
    positions = torch.arange(rows, device=packed.device, dtype=integer) * 7 % 500
    functions = [
        lambda leaf: rotate(leaf, positions, backend="triton"),
        lambda leaf: rotate(leaf, positions, backend="torch"),
        lambda leaf: direct(leaf, positions),
    ]
    runs = [
        outputs_and_gradients(function, [packed], [grad], dtype)
        for function, dtype in zip(functions, (place.dtype, place.dtype, torch.float64))
    ]
    for name, *tensors in zip(("packed", "gradient"), *runs):
        assert_as_good(*tensors, name)
    for run, given in zip(runs[0], (packed, grad)):
        assert torch.equal(run[:, :, 2], given[:, :, 2]), "the value and its gradient stay as they are"


def test_products_depend_on_the_difference_of_positions_alone() -> None:
    packed = torch.randn(2, 1, 3, 32, dtype=torch.float64)

    def product(query_at: int, key_at: int) -> torch.Tensor:
        turned = rotate(packed, torch.tensor([query_at, key_at]), backend="torch")
        return (turned[0, 0, 0] * turned[1, 0, 1]).sum()

    torch.testing.assert_close(product(3, 10), product(1003, 1010), rtol=1e-9, atol=1e-9)
    assert not torch.isclose(product(3, 10), product(3, 11))


GOOD = {"packed_XN3H": torch.zeros(4, 2, 3, 16), "positions_X": torch.zeros(4, dtype=torch.int32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packed_XN3H": torch.zeros(4, 2, 2, 16)}, "shape of packed_XN3H"),
        ({"packed_XN3H": torch.zeros(4, 2, 3, 15)}, "shape of packed_XN3H"),
        ({"packed_XN3H": torch.zeros(4, 16, 3, 2).transpose(1, 3)}, "stride of packed_XN3H"),
        ({"positions_X": torch.zeros(5, dtype=torch.int32)}, "shape of positions_X"),
        ({"positions_X": torch.zeros(4)}, "dtype of positions_X"),
        ({"positions_X": torch.zeros(4, dtype=torch.int32, device="meta")}, "device of positions_X"),
    ],
)
def test_bad_input_is_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        rotate(**{**GOOD, **change}, backend="torch")
