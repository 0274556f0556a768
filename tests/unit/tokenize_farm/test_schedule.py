"""Deaths and what follows from them: every unit is published once, and only what kills is left out."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.errors import UserError
from uniaudio.tokenize_farm.schedule import Job, Schedule

ROWS = 7


def make_schedule(units: int, retries: int = 1) -> Schedule:
    return Schedule(range(units), size=lambda unit: ROWS, name=lambda unit: f"train-{unit:06d}", retries=retries)


def run(
    schedule: Schedule, kills: set[tuple[int, int]], *, most: int = 4, chance: float = 0.0, seed: int = 0
) -> dict[int, tuple[int, ...]]:
    """Plays the workers: a call dies where it touches a row of `kills`, or by `chance`. Returns published unit -> rows left out."""
    rng, published = random.Random(seed), {}
    while (job := schedule.next(most)) is not None:
        touched = set()
        for unit in job.units:
            begin, end = job.rows or (0, ROWS)
            touched |= {(unit, row) for row in range(begin, end) if job.rows or row not in schedule.poison.get(unit, ())}
        if touched & kills or rng.random() < chance:
            schedule.died(job, "killed")
            continue
        for unit in job.units if job.rows is None else ():
            assert unit not in published, "published twice"
            published[unit] = schedule.poison.get(unit, ())
        schedule.done(job)
    assert schedule.waiting == 0
    return published


def test_units_go_out_in_order_and_at_most_so_many_a_call() -> None:
    schedule = make_schedule(5)
    assert [schedule.next(2) for _ in range(4)] == [Job((0, 1)), Job((2, 3)), Job((4,)), None]


def test_a_call_that_died_is_done_again_unit_by_unit() -> None:
    schedule = make_schedule(3)
    schedule.died(schedule.next(3), "killed")
    assert [schedule.next(3) for _ in range(3)] == [Job((unit,), alone=True) for unit in range(3)]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, ROWS - 1)), max_size=8), st.integers(0, 3), st.integers(1, 6))
def test_only_rows_that_kill_are_left_out(kills: set[tuple[int, int]], retries: int, most: int) -> None:
    published = run(make_schedule(6, retries), kills, most=most)
    assert published == {unit: tuple(sorted(row for its, row in kills if its == unit)) for unit in range(6)}


def test_deaths_by_chance_lose_nothing() -> None:
    for seed in range(20):
        assert run(make_schedule(20, retries=10), set(), chance=0.2, seed=seed) == dict.fromkeys(range(20), ())


def test_a_unit_that_dies_although_no_row_of_it_does_stops_the_farm() -> None:
    schedule = make_schedule(1, retries=1)
    with pytest.raises(UserError, match=r"train-000000 killed its worker 2 times more after a search.*out of memory.*more memory"):
        while (job := schedule.next(1)) is not None:
            schedule.done(job) if job.rows else schedule.died(job, "out of memory")


def test_a_fault_of_the_network_is_tried_again_a_few_times() -> None:
    schedule = make_schedule(2, retries=2)
    job = schedule.next(2)
    assert schedule.failed(job)
    again = [schedule.next(1), schedule.next(1)]
    assert again == [Job((0,), alone=True), Job((1,), alone=True)]
    assert schedule.failed(again[0]) and not schedule.failed(schedule.next(1))
