"""optimizer: norm, accumulation and the AdamW step against float64 and torch's AdamW; skipping; errors."""

import math

import pytest
import torch

from uniaudio.kernels.optimizer import AdamW, Segments, accumulate, adamw_step, square_sum

COUNTS = [5000, 8, 1, 4097]  # several blocks, odd sizes, one element
SETTINGS = {"decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def make_segments(counts=COUNTS, gap=0):
    starts = [sum(counts[:index]) + gap * index for index in range(len(counts))]
    return Segments(starts, counts)


def gradients_like(place, counts=COUNTS):
    return [place.randn(count) for count in counts]


def test_square_sum(place, poisoned) -> None:
    gradients = gradients_like(place)
    result = square_sum(make_segments(), gradients, backend="triton")
    truth = sum(gradient.double().square().sum() for gradient in gradients)
    assert math.isclose(float(result), float(truth), rel_tol=1e-6)
    assert float(result) == float(square_sum(make_segments(), gradients, backend="triton")), "the same bits every time"


def test_accumulate_takes_then_adds(place, poisoned) -> None:
    segments = make_segments(gap=3)
    first, second = gradients_like(place), gradients_like(place)
    total = torch.full((segments.end + 5,), 7.0, device=place.device)
    accumulate(total, segments, first, first=True, backend="triton")
    accumulate(total, segments, second, first=False, backend="triton")
    for start, count, one, two in zip(segments.starts, segments.counts, first, second):
        assert torch.equal(total[start : start + count], one.float() + two.float())
    assert (total[segments.end :] == 7).all() and (total[5000:5003] == 7).all(), "what lies between is left alone"


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_steps_are_those_of_torch(backend, place) -> None:
    segments, device = make_segments(), place.device
    master = place.randn(segments.end).float()
    moments = [torch.zeros_like(master), torch.zeros_like(master)]
    weights = torch.zeros(segments.end, dtype=place.dtype, device=device)
    theirs = torch.nn.Parameter(master.clone())
    plain = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    scale = torch.tensor(0.5, device=device)
    for step in range(1, 6):
        gradients = gradients_like(place)
        theirs.grad = torch.cat(gradients).float() * scale
        plain.step()
        settings = AdamW(rate=0.01, step=step, **SETTINGS)
        adamw_step(master, *moments, weights, segments=segments, gradients=gradients, scale=scale, settings=settings, backend=backend)
        torch.testing.assert_close(master, theirs.detach(), rtol=1e-5, atol=1e-6)
    state = plain.state[theirs]
    torch.testing.assert_close(moments[0], state["exp_avg"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments[1], state["exp_avg_sq"], rtol=1e-5, atol=1e-6)
    assert torch.equal(weights, master.to(place.dtype))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_a_step_whose_norm_was_not_finite_changes_nothing(backend, scale, place) -> None:
    segments = make_segments()
    tensors = [place.randn(segments.end).float() for _ in range(3)]
    before = [tensor.clone() for tensor in tensors]
    gradients = [gradient.fill_(float("nan")) for gradient in gradients_like(place)]
    settings = AdamW(rate=0.01, step=3, **SETTINGS)
    factor = torch.tensor(scale, device=place.device)
    adamw_step(*tensors, None, segments=segments, gradients=gradients, scale=factor, settings=settings, backend=backend)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before))


def test_gradients_that_moved_are_found_again(place) -> None:
    """The addresses are cached: another tensor at the next step must not be read at the old place."""
    segments = make_segments()
    for _ in range(3):
        gradients = gradients_like(place)
        truth = float(sum(gradient.double().square().sum() for gradient in gradients))
        assert math.isclose(float(square_sum(segments, gradients, backend="triton")), truth, rel_tol=1e-6)


def test_errors() -> None:
    segments, flat = Segments([0], [4]), torch.zeros(4)
    with pytest.raises(ValueError, match="square_sum: elements of the gradients | seen: \\[3\\] | allowed: \\[4\\]"):
        square_sum(segments, [torch.zeros(3)], backend="torch")
    with pytest.raises(ValueError, match="dtype of gradient 0 | seen: torch.int64"):
        square_sum(segments, [torch.zeros(4, dtype=torch.int64)], backend="torch")
    with pytest.raises(ValueError, match=r"accumulate: flat tensor \| seen: \(2,\) torch.float32"):
        accumulate(flat[:2], segments, [torch.zeros(4)], first=True, backend="torch")
    with pytest.raises(ValueError, match="optimizer: segments"):
        Segments([0], [0])
    settings = AdamW(rate=0.01, step=1, **SETTINGS)
    arguments = {"segments": segments, "gradients": [flat], "scale": torch.ones(()), "settings": settings, "backend": "torch"}
    with pytest.raises(ValueError, match="adamw_step: shape of exp_avg_sq"):
        adamw_step(flat, flat.clone(), torch.zeros(5), None, **arguments)
    with pytest.raises(ValueError, match="adamw_step: dtype of exp_avg "):
        adamw_step(flat, flat.clone().half(), flat.clone(), None, **arguments)
