"""draw: the kernel draws what the definition draws, with the right frequencies, candidates and scores; and its errors."""

import math

import pytest
import torch

from uniaudio.kernels.draw import Number, Setting, draw
from uniaudio.kernels.draw.reference import WINDOW, uniform

NEVER = -(2**30)


def rows(count: int, device: str = "cpu", **changes: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Settings and numbers of `count` rows: temperature 1, everything else off, seeds 0, 1, ..."""
    values = {"temperature": 1.0, "top_p": 1.0, "penalty": 1.0, "guidance": 1.0, "top_k": 1 << 20, "frame": 0, "open_from": 0, "active": 1}
    values |= changes
    settings = torch.tensor([[values[name.name] for name in Setting]] * count, dtype=torch.float32)
    numbers = torch.tensor([[values.get(name.name, 0) for name in Number]] * count, dtype=torch.int64)
    index = torch.arange(count)
    for name in (Number.given, Number.free, Number.seed):
        numbers[:, name] = index
    return settings.to(device), numbers.to(device)


def drawn(logits, settings, numbers, *, backend="torch", history=None, level=0, end=None, codebooks=1):
    """(columns drawn, scores, history afterwards)."""
    history = torch.full(logits.shape, NEVER, dtype=torch.int32, device=logits.device) if history is None else history.clone()
    score = torch.zeros(len(logits), device=logits.device)
    codes = torch.full((len(logits), codebooks), -7, device=logits.device)
    draw(logits, settings, numbers, history, score, codes, level=level, base=0, end=end, backend=backend)
    return codes[:, level], score, history


CASES = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "top_k": {"top_k": 7, "temperature": 0.8},
    "top_p": {"top_p": 0.6, "temperature": 1.3},
    "both": {"top_k": 30, "top_p": 0.9, "temperature": 0.8},
    "penalty": {"penalty": 1.4, "frame": 60},
    "guidance": {"guidance": 2.5},
    "closed": {"open_from": 5, "frame": 4},
    "open": {"open_from": 5, "frame": 5, "temperature": 0.0},
    "inactive": {"active": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_draws_what_the_definition_draws(case, place) -> None:
    logits = place.randn(6, 41, scale=2.0)
    logits[:, -1] += 8
    settings, numbers = rows(6, place.device, **CASES[case])
    numbers[:, Number.seed] = torch.randint(-(2**62), 2**62, (6,), generator=place.generator).to(place.device)
    if case == "guidance":
        numbers[:, Number.free] = numbers[:, Number.given].flip(0)
    history = torch.where(place.randint(0, 2, (6, 41)) > 0, place.randint(0, 70, (6, 41)), NEVER).to(torch.int32)
    expected = drawn(logits, settings, numbers, history=history, end=99)
    result = drawn(logits, settings, numbers, history=history, end=99, backend="triton")
    assert torch.equal(result[0], expected[0])
    torch.testing.assert_close(result[1], expected[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(result[2], expected[2])
    assert (result[0] == 99).any() == (case not in ("closed",))


def test_large_vocabulary_and_extreme_logits(place) -> None:
    logits = place.randn(2, 1025, scale=30.0)
    logits[1, 5:] = -1e4
    settings, numbers = rows(2, place.device, top_k=30, top_p=0.9, temperature=0.1)
    result = drawn(logits, settings, numbers, backend="triton")
    assert torch.equal(result[0], drawn(logits, settings, numbers)[0])
    assert int(result[0][1]) < 5


def test_frequencies_are_the_softmax() -> None:
    shares = torch.tensor([0.5, 0.25, 0.15, 0.1])
    settings, numbers = rows(40_000)
    ids, score, _ = drawn(shares.log().expand(40_000, 4).contiguous(), settings, numbers)
    counted = torch.bincount(ids, minlength=4) / 40_000
    assert ((counted - shares).abs() < 4 * (shares * (1 - shares) / 40_000).sqrt()).all()  # four standard deviations
    torch.testing.assert_close(score, shares.log()[ids])


def test_noise_is_uniform_and_differs_by_seed_frame_level_and_column() -> None:
    columns = torch.arange(1000)
    noise = uniform(torch.arange(100), torch.zeros(100, dtype=torch.int64), 0, columns)
    assert 0 < noise.min() < noise.max() < 1
    assert abs(noise.mean() - 0.5) < 4 / math.sqrt(12 * noise.numel())
    assert abs(torch.corrcoef(noise[:2])[0, 1]) < 0.15
    seed, frame = torch.tensor([3]), torch.tensor([7])
    for other in (uniform(seed + 1, frame, 0, columns), uniform(seed, frame + 1, 0, columns), uniform(seed, frame, 1, columns)):
        assert (other != uniform(seed, frame, 0, columns)).float().mean() > 0.99
    assert (uniform(seed + 2**32, frame, 0, columns) != uniform(seed, frame, 0, columns)).float().mean() > 0.99


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [({"top_k": 2}, {0, 1}), ({"top_p": 0.6}, {0, 1}), ({"top_p": 0.4}, {0}), ({"top_k": 1}, {0}), ({"temperature": 0.0}, {0})],
)
def test_candidates(changes, allowed) -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(300, 4).contiguous()
    assert set(drawn(logits, *rows(300, **changes))[0].tolist()) == allowed


def test_a_recent_code_is_penalised_and_an_old_one_is_not() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    for age, expected in ((1, 1), (WINDOW, 1), (WINDOW + 1, 0)):
        settings, numbers = rows(1, temperature=0.0, penalty=1.5, frame=100)
        history = torch.tensor([[100 - age, NEVER, NEVER]], dtype=torch.int32)
        ids, _, after = drawn(logits, settings, numbers, history=history)
        assert ids.item() == expected, age
        assert after[0, expected] == 100


def test_guidance_moves_away_from_the_free_logits() -> None:
    logits = torch.tensor([[1.0, 0.9], [1.0, 0.0]])
    settings, numbers = rows(2, temperature=0.0, guidance=3.0)
    numbers[:, Number.given], numbers[:, Number.free] = 0, 1
    assert drawn(logits, settings, numbers)[0].tolist() == [1, 1], "both rows of a pair draw the same"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits_BC": torch.zeros(2)}, "shape of logits_BC"),
        ({"logits_BC": torch.zeros(2, 9000), "history_BC": torch.zeros(2, 9000, dtype=torch.int32)}, "codes of a level"),
        ({"settings_BS": torch.zeros(2, 9)}, "shape of settings_BS"),
        ({"settings_BS": torch.zeros(2, 4).half()}, "dtype of settings_BS"),
        ({"numbers_BN": torch.zeros(2, 7, dtype=torch.int32)}, "dtype of numbers_BN"),
        ({"history_BC": torch.zeros(2, 4)}, "shape of history_BC"),
        ({"codes_BQ": torch.zeros(2, 3)}, "dtype of codes_BQ"),
        ({"level": 3}, "level"),
    ],
)
def test_bad_input_is_named(changes, message) -> None:
    settings, numbers = rows(2)
    good = {"logits_BC": torch.zeros(2, 5), "settings_BS": settings, "numbers_BN": numbers, "score_B": torch.zeros(2)}
    good |= {"history_BC": torch.zeros(2, 5, dtype=torch.int32), "codes_BQ": torch.zeros(2, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        draw(**(good | {"level": 0} | changes), base=0, end=None, backend="torch")
