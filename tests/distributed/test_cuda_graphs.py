"""Training with the layers captured is the training without, bit for bit; where that cannot be, the config says so."""

from pathlib import Path

import pytest
import tiny_run
from ranks import run_ranks


@pytest.mark.parametrize("layout", [{}, {"accumulation": 2}, {"data_parallel_size": 2, "rows": 2}], ids=["one", "accumulation", "data 2"])
def test_training_with_graphs_is_bit_for_bit_that_without(layout: dict, tmp_path: Path) -> None:
    run = tiny_run.tiny_run(tmp_path, precision="bf16", zero=1, **layout)
    arguments = {"config": run.model_dump(mode="json"), "steps": 5}
    plain, graphed = (
        run_ranks(run.parallel.world_size, tmp_path / function.__name__, function, **arguments)
        for function in (tiny_run.whole_weights, tiny_run.graphed)
    )
    assert graphed == [{**rank, "captured": True} for rank in plain]
