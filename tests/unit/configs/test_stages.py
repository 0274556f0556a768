import itertools
import random

import pytest

from uniaudio.configs.flops import layer_flops
from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.configs.stages import balanced_bounds, layer_costs, stage_bounds, stage_layers
from uniaudio.errors import UserError


def worst(costs: list[float], bounds: tuple[int, ...] | list[int]) -> float:
    return max(sum(costs[start:stop]) for start, stop in itertools.pairwise(bounds))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_the_slowest_stage_is_as_fast_as_any_cut_allows(stages: int) -> None:
    for seed in range(20):
        costs = [float(random.Random(seed * 100 + index).randint(0, 9)) for index in range(8)]
        bounds = balanced_bounds(costs, stages)
        assert bounds[0] == 0 and bounds[-1] == len(costs) and len(bounds) == stages + 1
        assert all(start < stop for start, stop in itertools.pairwise(bounds))
        cuts = itertools.combinations(range(1, len(costs)), stages - 1)
        assert worst(costs, bounds) == min(worst(costs, (0, *cut, len(costs))) for cut in cuts)


def test_more_stages_than_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="3 stages of 2 layers"):
        balanced_bounds([1.0, 1.0], 3)


def test_the_paper_model_is_cut_where_its_work_is_halved() -> None:
    """At Q = 3 the local stack costs as much as the global one: two stages part near the link, not in the middle of the list."""
    run = load_config(RunConfig, "paper_1b", folder="runs")
    costs = layer_flops(run.model, run.data.frames_per_row, 4212)
    _, cut, _ = balanced_bounds(costs, 2)
    assert cut in range(23, 28)
    assert worst(costs, [0, cut, len(costs)]) < 0.55 * sum(costs)


def test_tensor_parallel_traffic_counts_as_work_of_the_global_blocks() -> None:
    """docs/runs/layouts_4h200: 0.68 ms a block and micro-batch of 16,384 frames, beside 2.6 of its products."""
    whole, cut = (
        load_config(
            RunConfig, "paper_1b", folder="runs", overrides=["parallel.pipeline_parallel_size=2", f"parallel.tensor_parallel_size={size}"]
        )
        for size in (1, 2)
    )
    assert layer_costs(whole, 4212) == layer_flops(whole.model, whole.data.frames_per_row, 4212)
    before, now = layer_costs(whole, 4212), layer_costs(cut, 4212)
    assert now[1] / before[1] == pytest.approx(1 + 0.68 / 2.6, rel=0.1) and now[27:] == before[27:]
    assert stage_bounds(cut, 4212)[1] < stage_bounds(whole, 4212)[1]


def test_given_bounds_are_taken_or_refused() -> None:
    base = ["parallel.pipeline_parallel_size=2", "optim.gradient_accumulation=2", "data.shards=s"]
    run = load_config(
        RunConfig, "demo_cpu", folder="runs", overrides=[*base, "parallel.tensor_parallel_size=1", "parallel.stage_bounds=[0,4,9]"]
    )
    assert stage_bounds(run, 4212) == [0, 4, 9] and stage_layers(run, 4212, 1) == range(4, 9)
    for bounds in ("[0,9]", "[0,4,8]", "[0,0,9]", "[1,4,9]"):
        with pytest.raises(UserError, match=r"parallel.stage_bounds \| seen: .* \| allowed: 3 ascending numbers from 0 to 9"):
            load_config(RunConfig, "demo_cpu", folder="runs", overrides=[*base, f"parallel.stage_bounds={bounds}"])
