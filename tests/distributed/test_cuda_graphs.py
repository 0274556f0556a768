"""Training with the layers captured is the training without, bit for bit; where that cannot be, the config says so."""

from pathlib import Path

import pytest
import tiny_run
from ranks import run_ranks

LAYOUTS = {
    "one": {},
    "accumulation": {"accumulation": 2},
    "data 2": {"data_parallel_size": 2, "rows": 2},
    "tensor 2": {"tensor_parallel_size": 2, "accumulation": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_with_graphs_is_bit_for_bit_that_without(layout: str, tmp_path: Path) -> None:
    run = tiny_run.tiny_run(tmp_path, precision="bf16", zero=1, **LAYOUTS[layout])
    arguments = {"config": run.model_dump(mode="json"), "steps": 5}
    plain, graphed = (
        run_ranks(run.parallel.world_size, tmp_path / function.__name__, function, **arguments)
        for function in (tiny_run.whole_weights, tiny_run.graphed)
    )
    assert graphed == [{**rank, "captured": True} for rank in plain]


def test_graphs_that_are_asked_for_need_a_gpu(tmp_path: Path) -> None:
    run = tiny_run.tiny_run(tmp_path, precision="bf16", zero=1)
    run = run.model_copy(update={"train": run.train.model_copy(update={"cuda_graphs": True})})
    with pytest.raises(
        AssertionError, match=r"train\.cuda_graphs: no CUDA device \| seen: cpu \| allowed: cuda \| remedy: set train\.cuda_g"
    ):
        run_ranks(1, tmp_path, tiny_run.whole_weights, config=run.model_dump(mode="json"), steps=1)
