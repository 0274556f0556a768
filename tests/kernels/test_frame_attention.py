"""frame_attention: each form against float64, its gradients, odd shapes, and its errors."""

import pytest
import torch

from uniaudio.kernels.frame_attention import frame_attention, reference
from uniaudio.kernels.frame_attention.interface import MAX_CODES

# X, L, N, H: one code, the paper's three, a head count that is no power of two, the released head width, frames longer than a tile holds
SHAPES = [(7, 1, 3, 32), (11, 3, 2, 64), (5, 3, 3, 96), (6, 5, 1, 40), (3, 8, 2, 128), (5, 9, 2, 64), (3, 17, 1, 96), (2, 32, 2, 256)]


def naive(qkv_XLN3H: torch.Tensor) -> torch.Tensor:
    """The definition, code by code."""
    frames, codes, heads, _, head_dim = qkv_XLN3H.shape
    query, key, value = qkv_XLN3H.unbind(3)
    rows = []
    for l in range(codes):
        scores = torch.einsum("xnh,xmnh->xnm", query[:, l], key[:, : l + 1]) / head_dim**0.5
        rows.append(torch.einsum("xnm,xmnh->xnh", scores.softmax(-1), value[:, : l + 1]))
    return torch.stack(rows, 1).reshape(frames, codes, heads * head_dim)


def test_reference_is_the_definition() -> None:
    qkv = torch.randn(5, 4, 3, 3, 16, dtype=torch.float64)
    torch.testing.assert_close(frame_attention(qkv, backend="torch"), naive(qkv))


def test_reference_slices_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "FRAMES_A_CALL", 4)
    qkv = torch.randn(11, 3, 2, 3, 16, dtype=torch.float64)
    torch.testing.assert_close(frame_attention(qkv, backend="torch"), naive(qkv))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradient(shape, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    frames, codes, heads, head_dim = shape
    qkv = place.randn(frames, codes, heads, 3, head_dim)
    grad = place.randn(frames, codes, heads * head_dim)
    truth = outputs_and_gradients(naive, [qkv], [grad], torch.float64)
    plain = outputs_and_gradients(lambda x: frame_attention(x, backend="torch"), [qkv], [grad], place.dtype)
    result = outputs_and_gradients(lambda x: frame_attention(x, backend="triton"), [qkv], [grad], place.dtype)
    for name, *tensors in zip(("output", "gradient"), result, plain, truth):
        assert_as_good(*tensors, name)


@pytest.mark.parametrize("rows", [16, 32, 64])
@pytest.mark.parametrize("codes", [1, 3, 8])
def test_every_tile_gives_the_same(rows, codes, place, poisoned, assert_as_good) -> None:
    from uniaudio.kernels.frame_attention import triton_kernels

    launch = triton_kernels.Launch(rows, 1)
    qkv = place.randn(9, codes, 2, 3, 32)
    grad = place.randn(9, codes, 64)
    leaf = qkv.double().requires_grad_()
    naive(leaf).backward(grad.double())
    plain = qkv.clone().requires_grad_()
    plain_out = frame_attention(plain, backend="torch")
    plain_out.backward(grad)
    assert_as_good(triton_kernels.forward(qkv, launch), plain_out.detach(), naive(qkv.double()), "output")
    assert_as_good(triton_kernels.backward(qkv, grad, launch), plain.grad, leaf.grad, "gradient")


def test_large_scores_do_not_overflow(place) -> None:
    qkv = place.randn(4, 3, 1, 3, 32, scale=30.0)
    out = frame_attention(qkv, backend="triton")
    assert torch.isfinite(out).all()


def test_later_codes_do_not_reach_earlier_ones(place) -> None:
    qkv = place.randn(3, 4, 2, 3, 32)
    before = frame_attention(qkv, backend="triton")
    qkv[:, 2:] = place.randn(3, 2, 2, 3, 32)
    after = frame_attention(qkv, backend="triton")
    torch.testing.assert_close(after[:, :2], before[:, :2], rtol=0, atol=0)
    assert not torch.equal(after[:, 2:], before[:, 2:])


def test_no_frames(place) -> None:
    qkv = place.randn(0, 3, 2, 3, 32).requires_grad_()
    out = frame_attention(qkv, backend="triton")
    out.sum().backward()
    assert out.shape == (0, 3, 64)
    assert qkv.grad.shape == qkv.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_more_frames_than_a_grid_axis_and_than_31_bits_of_offsets() -> None:
    qkv = torch.randn(1_000_000, 3, 12, 3, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    assert qkv.numel() > 2**31
    out = frame_attention(qkv, backend="triton")
    upstream = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, qkv, upstream)
    for part in (slice(0, 64), slice(712_000, 712_064), slice(999_000, None)):
        leaf = qkv[part].detach().double().requires_grad_()
        expected = naive(leaf)
        (expected_grad,) = torch.autograd.grad(expected, leaf, upstream[part].double())
        assert ((out[part] - expected).norm() / expected.norm()).item() < 4e-3
        assert ((grad[part] - expected_grad).norm() / expected_grad.norm()).item() < 8e-3


@pytest.mark.parametrize(
    ("qkv", "message"),
    [
        (torch.zeros(2, 3, 2, 2, 16), "shape of qkv_XLN3H"),
        (torch.zeros(2, MAX_CODES + 1, 2, 3, 16), "codes a frame"),
        (torch.zeros(2, 3, 2, 3, 12), "head dimension"),
        (torch.zeros(2, 3, 2, 3, 512), "head dimension"),
        (torch.zeros(2, 3, 2, 3, 16, dtype=torch.int32), "dtype of qkv_XLN3H"),
        (torch.zeros(2, 2, 3, 3, 16).transpose(1, 2), "stride of qkv_XLN3H"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_bad_input_is_named(qkv, message, backend) -> None:
    with pytest.raises(ValueError, match=message):
        frame_attention(qkv.cuda() if torch.cuda.is_available() else qkv, backend=backend)


def test_unknown_backend_and_wrong_device_are_named(monkeypatch) -> None:
    qkv = torch.zeros(2, 3, 2, 3, 16)
    with pytest.raises(ValueError, match="unknown backend"):
        frame_attention(qkv, backend="cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        frame_attention(qkv, backend="triton")
