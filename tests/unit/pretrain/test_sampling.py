"""What a user may choose for the draw, and the seeds of several sequences."""

import pytest

from uniaudio.errors import UserError
from uniaudio.kernels.draw import Setting
from uniaudio.pretrain.sampling import Sampling, candidate_seed, named_seed


def test_defaults_are_the_papers_and_everything_else_is_off():
    settings = Sampling().settings()
    assert Sampling().top_k == 30
    assert [settings[name] for name in (Setting.temperature, Setting.top_p, Setting.penalty, Setting.guidance)] == [0.8, 1, 1, 1]


@pytest.mark.parametrize(
    "bad",
    [
        {"top_k": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"guidance": -1},
        {"penalty": 0.0},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError, match=r"seen: .* \| allowed"):
        Sampling(**bad)


def test_seeds_differ_and_stay_in_range():
    seeds = [candidate_seed(3, number) for number in range(50)] + [named_seed(3, f"clip {number}") for number in range(50)]
    assert seeds[0] == 3
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert named_seed(3, "a") == named_seed(3, "a") != named_seed(4, "a")
