"""A loss that jumps is seen, one that drifts or is noisy is not."""

import math
import random

from uniaudio.pretrain.spikes import LEAST, SpikeDetector


def usual(detector: SpikeDetector, count: int) -> None:
    noise = random.Random(3)
    for step in range(count):
        assert not detector.sees(5.0 - 0.001 * step + noise.gauss(0, 0.05))


def test_a_jump_is_seen_and_does_not_become_usual() -> None:
    detector = SpikeDetector(6.0)
    usual(detector, 200)
    assert detector.sees(6.0) and detector.sees(6.0)
    assert not detector.sees(4.9)


def test_nothing_is_judged_before_there_is_enough_to_compare() -> None:
    detector = SpikeDetector(6.0)
    usual(detector, LEAST - 1)
    assert not detector.sees(50.0)
    detector.forget()
    assert not detector.sees(50.0)


def test_off_sees_nothing_and_not_finite_is_another_matter() -> None:
    detector = SpikeDetector(0.0)
    usual(detector, 50)
    assert not detector.sees(50.0)
    assert not SpikeDetector(6.0).sees(math.nan)
