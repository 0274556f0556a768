"""Every layout is the same model: 20 losses, gradient norms, statistics and the final weights against one process, fp32 on gloo.

`golden/losses.json` holds the losses of one process as they were when it was made, so that a change of the numbers is seen and meant:

    python tests/distributed/test_parity.py     # writes it anew
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from ranks import run_ranks

from uniaudio.pretrain.checkpoint import load_model

STEPS = 20
TOLERANCE = 1e-5
# AdamW divides by each gradient's own size, so an entry whose gradient is rounding noise moves by that noise at the full rate: weights of
# 20 steps at a rate of 0.01 agree less closely than the losses do.
WEIGHT_TOLERANCE = 1e-4
GOLDEN = Path(__file__).parent / "golden" / "losses.json"

# Each makes a global batch of 4 rows; the world size is the product.
LAYOUTS: dict[str, dict[str, Any]] = {
    "recomputed": {"recompute": "full"},
    "recomputed in part": {"recompute": "selective"},
    "accumulation": {"accumulation": 2, "rows": 2},
    "data 2": {"data_parallel_size": 2, "rows": 2},
    "tensor 2": {"tensor_parallel_size": 2},
    "tensor 2 x pipeline 2, recomputed": {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "accumulation": 2,
        "rows": 2,
        "recompute": "full",
        "stage_bounds": [0, 5, 7],  # the link here, the local block there
    },
    "pipeline 2": {"pipeline_parallel_size": 2, "accumulation": 2, "rows": 2},
    "pipeline 4": {"pipeline_parallel_size": 4, "accumulation": 4, "rows": 1},
    "tensor 2 x pipeline 2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "accumulation": 2, "rows": 2},
    "data 2 x pipeline 2": {"data_parallel_size": 2, "pipeline_parallel_size": 2, "accumulation": 2, "rows": 1},
    "ZeRO 1": {"data_parallel_size": 2, "rows": 2, "zero": 1},
    "ZeRO 2": {"data_parallel_size": 2, "rows": 2, "zero": 2},
    "ZeRO 3": {"data_parallel_size": 2, "rows": 2, "zero": 3},
    "ZeRO 2, optimizer on the host": {"data_parallel_size": 2, "rows": 2, "zero": 2, "offload_optimizer": True},
    "ZeRO 3, optimizer on the host": {"data_parallel_size": 2, "rows": 2, "zero": 3, "offload_optimizer": True},
    "tensor 2 x data 2, ZeRO 1": {"tensor_parallel_size": 2, "data_parallel_size": 2, "rows": 2, "zero": 1},
    "tensor 2 x pipeline 2, ZeRO 1": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "accumulation": 2, "rows": 2, "zero": 1},
}


def run_layout(folder: Path, **options: Any) -> list[dict[str, Any]]:
    run = tiny_run.tiny_run(folder, **options)
    return run_ranks(
        run.parallel.world_size, folder / "results", tiny_run.train, config=run.model_dump(mode="json"), stop=STEPS, save_at=(STEPS,)
    )


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in load_model(folder, "cpu", torch.float32)[0].named_parameters()}


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("one")


@pytest.fixture(scope="module")
def one_process(one_folder: Path) -> dict[str, Any]:
    return run_layout(one_folder)[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_losses_of_one_process(name: str, one_process: dict[str, Any], one_folder: Path, tmp_path: Path) -> None:
    ranks = run_layout(tmp_path, **LAYOUTS[name])
    assert all(rank == ranks[0] for rank in ranks), "every rank knows the same numbers"
    for ours, reference in zip(ranks[0]["steps"], one_process["steps"], strict=True):
        assert ours["counts"] == reference["counts"]
        assert ours["loss"] == pytest.approx(reference["loss"], rel=TOLERANCE)
        assert ours["norm"] == pytest.approx(reference["norm"], rel=TOLERANCE)
        for task, sums in enumerate(reference["sums"]):
            assert ours["sums"][task] == pytest.approx(sums, rel=TOLERANCE)
    assert ranks[0]["valid"] == pytest.approx(one_process["valid"], rel=TOLERANCE)
    ours, truth = final_weights(tmp_path), final_weights(one_folder)
    for key, weight in truth.items():
        assert float((ours[key] - weight).norm() / weight.norm().clamp(min=1e-3)) < WEIGHT_TOLERANCE, key


@pytest.mark.parametrize("parallel", [{}, {"data_parallel_size": 2, "rows": 1, "accumulation": 2}], ids=["direct", "data 2"])
def test_tensor_parallel_ranks_keep_the_same_weights_in_bf16(parallel: dict[str, Any], one_process: dict[str, Any], tmp_path: Path) -> None:
    """What all of them have whole is bit for bit the same after steps of the project's own optimizer step, and right to bf16's rounding."""
    run = tiny_run.tiny_run(tmp_path, precision="bf16", zero=1, tensor_parallel_size=2, **parallel)
    ranks = run_ranks(run.parallel.world_size, tmp_path, tiny_run.whole_weights, config=run.model_dump(mode="json"), steps=4)
    assert all(rank == ranks[0] for rank in ranks) and "local_blocks.0.mlp.up.weight" in ranks[0]["whole"]
    for ours, reference in zip(ranks[0]["steps"], one_process["steps"]):
        assert ours["counts"] == reference["counts"]
        assert ours["loss"] == pytest.approx(reference["loss"], rel=2e-3)
        assert ours["norm"] == pytest.approx(reference["norm"], rel=2e-2)


def test_the_losses_are_those_of_the_golden_file(one_process: dict[str, Any]) -> None:
    assert [step["loss"] for step in one_process["steps"]] == pytest.approx(json.loads(GOLDEN.read_text()), rel=TOLERANCE)


def test_the_reference_run_learns_and_clips(one_process: dict[str, Any]) -> None:
    """Else the comparison above would say little."""
    losses = [step["loss"] for step in one_process["steps"]]
    assert losses[-1] < losses[0] - 0.1
    assert sum(step["norm"] > 0.5 for step in one_process["steps"]) > 4, "clip_norm 0.5 is at work"


def test_unequal_micro_batches_weigh_by_their_codes(one_process: dict[str, Any]) -> None:
    """The synthetic rows have different numbers of targets: a mean of means would miss the reference."""
    counts = [tiny_run.global_batch(1, tiny_run.ROWS).target_mask_BTQ[row].sum().item() for row in range(tiny_run.ROWS)]
    assert len(set(counts)) > 1


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as made:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps([step["loss"] for step in run_layout(Path(made))[0]["steps"]], indent=1) + "\n")
    sys.exit()
