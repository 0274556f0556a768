"""Training with the layers captured is the training without, bit for bit; where that cannot be, the config says so."""

from pathlib import Path

import pytest
import tiny_run
from ranks import run_ranks

# With how many pairs of graphs each stage has; one that holds the head alone has none.
LAYOUTS = {
    "one": ({}, [1]),
    "accumulation": ({"accumulation": 2}, [1]),
    "data 2": ({"data_parallel_size": 2, "rows": 2}, [1]),
    "tensor 2 x data 2": ({"tensor_parallel_size": 2, "data_parallel_size": 2, "rows": 1, "accumulation": 2}, [1]),
    "pipeline 3": ({"pipeline_parallel_size": 3, "stage_bounds": [0, 2, 5, 7], "rows": 1, "accumulation": 4}, [3, 2, 1]),
    "tensor 2 x pipeline 2": (
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "stage_bounds": [0, 6, 7], "rows": 1, "accumulation": 3},
        [2, 0],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_with_graphs_is_bit_for_bit_that_without(layout: str, tmp_path: Path) -> None:
    options, captured = LAYOUTS[layout]
    run = tiny_run.tiny_run(tmp_path, precision="bf16", zero=1, **options)
    world = run.parallel.world_size
    arguments = {"config": run.model_dump(mode="json"), "steps": 5}
    plain, graphed = (
        run_ranks(world, tmp_path / function.__name__, function, **arguments) for function in (tiny_run.whole_weights, tiny_run.graphed)
    )
    assert graphed == [{**ours, "captured": captured[rank * len(captured) // world]} for rank, ours in enumerate(plain)]


def test_graphs_that_are_asked_for_need_a_gpu(tmp_path: Path) -> None:
    run = tiny_run.tiny_run(tmp_path, precision="bf16", zero=1)
    run = run.model_copy(update={"train": run.train.model_copy(update={"cuda_graphs": True})})
    with pytest.raises(
        AssertionError, match=r"train\.cuda_graphs: no CUDA device \| seen: cpu \| allowed: cuda \| remedy: set train\.cuda_g"
    ):
        run_ranks(1, tmp_path, tiny_run.whole_weights, config=run.model_dump(mode="json"), steps=1)
