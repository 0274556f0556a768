"""Draws are fixed by their integers for good: these values must never change, or resumed runs would read other data."""

import numpy as np

from uniaudio.pretrain.data.draw import below, hashed, salt, shuffled


def test_known_values() -> None:
    assert hashed(0).tolist() == [16294208416658607535]
    assert hashed(1, 2, np.arange(2)).tolist() == [16613338946343043936, 13264548337748323810]
    assert shuffled(6, 3, 1).tolist() == [5, 1, 4, 0, 3, 2]
    assert salt("tts") == 786859498


def test_order_of_the_parts_counts() -> None:
    assert hashed(1, 2) != hashed(2, 1)


def test_draws_are_spread_evenly() -> None:
    counts = np.bincount(below(hashed(7, np.arange(100_000)), 10), minlength=10)
    assert counts.shape == (10,) and abs(counts - 10_000).max() < 400
    assert sorted(shuffled(1000, 5).tolist()) == list(range(1000))
