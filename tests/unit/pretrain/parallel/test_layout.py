"""A process's coordinates, in DeepSpeed's order, and the check of the number of processes."""

import pytest
import torch

from uniaudio.configs.parallel import ParallelConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.parallel import layout


def test_ranks_stand_where_deepspeed_puts_them() -> None:
    topology_module = pytest.importorskip("deepspeed.runtime.pipe.topology")
    parallel = ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=3, data_parallel_size=4)
    topology = topology_module.PipeModelDataParallelTopology(num_pp=3, num_mp=2, num_dp=4)
    for rank in range(parallel.world_size):
        tensor_rank, data_rank, pipeline_rank = layout.coordinates(rank, parallel)
        assert topology.get_rank(pipe=pipeline_rank, data=data_rank, model=tensor_rank) == rank


def test_one_process_initialises_nothing() -> None:
    assert layout.initialize(ParallelConfig(), torch.device("cpu")) == layout.Layout()
    assert not torch.distributed.is_initialized()


def test_a_wrong_number_of_processes_names_every_factor(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    parallel = ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=2, data_parallel_size=2)
    with pytest.raises(UserError, match=r"WORLD_SIZE=6.*8 = 2 \(tensor\) x 2 \(data\) x 2 \(pipeline\).*start 8 processes"):
        layout.initialize(parallel, torch.device("cpu"))
