"""The scripts of docs/experiments.md: their configs are valid, and a few clips are exactly so many, the same ones each time."""

import json
from pathlib import Path
from typing import get_args

import experiments
import pytest
import structures
from random_shards import write_random_shards

from uniaudio.configs.load import load_config
from uniaudio.configs.model import Structure
from uniaudio.configs.run import RunConfig


@pytest.mark.parametrize("structure", get_args(Structure))
@pytest.mark.parametrize(("name", "codebooks"), [("demo_cpu", 3), ("all_tasks_30m", 8)])
def test_every_structure_of_a_run_is_a_valid_config(structure: Structure, name: str, codebooks: int) -> None:
    alone = ["parallel.tensor_parallel_size=1"]
    run = load_config(RunConfig, name, folder="runs", overrides=alone)
    made = load_config(RunConfig, name, folder="runs", overrides=[*alone, *structures.structure_overrides(run, structure, codebooks)]).model
    assert made.global_layers + made.local_layers == run.model.global_layers + run.model.local_layers


def test_a_few_clips_are_so_many_and_the_same_ones(tmp_path: Path) -> None:
    write_random_shards(tmp_path / "all", clips=40, valid_clips=4, codebooks=3, text_width=8, frames=(20, 30), clips_per_shard=12)
    few, again = (experiments.subset(tmp_path / "all", tmp_path / name, "se", 5) for name in ("few", "again"))
    assert (few / "train-000000.tar").read_bytes() == (again / "train-000000.tar").read_bytes()
    assert json.loads((few / "train-000000.json").read_text())["clips"] == 5
    with pytest.raises(SystemExit, match="clips serve se, 1000 are asked for"):
        experiments.subset(tmp_path / "all", tmp_path / "many", "se", 1000)
