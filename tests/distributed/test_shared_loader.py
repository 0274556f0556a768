"""One rank of those that share rows reads; the others get the same batches, position and faults without opening a shard."""

import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from random_shards import write_random_shards
from ranks import run_ranks

from uniaudio.configs.parallel import ParallelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.loader import DataPosition
from uniaudio.pretrain.data.shared import sharing_ranks
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.parallel import layout as layouts
from uniaudio.pretrain.train import make_loaders


def run_of(shards: str, parallel: dict[str, int], tasks: tuple[str, ...] = ("tts", "sound")) -> RunConfig:
    data = {"shards": shards, "tasks": tasks, "frames_per_row": 128, "rows_per_micro_batch": 2, "prompt_seconds": 0.3}
    model = {"width": 32, "num_heads": 2, "ffn_width": 64, "global_layers": 2, "local_layers": 1, "max_positions": 256, "text_width": 16}
    return RunConfig.model_validate(
        {"model": model, "data": data, "parallel": parallel, "optim": {}, "train": {"output_dir": "unused", "steps": 1}}
    )


def digest(batches: list[Batch]) -> str:
    content = hashlib.sha256()
    for batch in batches:
        for tensor in batch.as_tuple():
            content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def read(shards: str, parallel: dict[str, int]) -> dict[str, object]:
    """What a rank gets: digests of two steps and of held-out batches, position, metrics, whether it opened shards, a fault's message."""
    run = run_of(shards, parallel)
    layout = layouts.initialize(run.parallel, torch.device("cpu"))
    found: dict[str, object] = {"data": layout.data_parallel_rank}
    try:
        make_loaders(run_of(shards, parallel, ("tts", "sd")), load_vocabulary("paper"), layout, torch.device("cpu"))
    except UserError as error:
        found["fault"] = str(error)
    loaders = make_loaders(run, load_vocabulary("paper"), layout, torch.device("cpu"))
    assert loaders.valid is not None
    loaders.train.position = DataPosition(3, 5)
    first = loaders.train.first_row(3)
    found["digests"] = [digest(loaders.train.step_batches(step)) for step in (3, 4)] + [digest(loaders.valid.valid_batches(3))]
    found |= {"row": [first, loaders.train.first_row(5)], "metrics": loaders.train.metrics(5), "keys": loaders.train.info(4)["keys"]}
    found["read"] = getattr(loaders.train, "reader", loaders.train) is not None
    layouts.shutdown()
    loaders.close()
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    return str(write_random_shards(folder, clips=40, valid_clips=24, codebooks=3, text_width=16, frames=(20, 60), clips_per_shard=20))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{"data_parallel_size": 2, "tensor_parallel_size": 2}], ids=str)
def test_one_rank_reads_for_those_that_share_its_rows(shards, parallel, tmp_path: Path) -> None:
    ranks = run_ranks(4, tmp_path, read, shards=shards, parallel=parallel)
    assert [rank["read"] for rank in ranks] == [True, False, True, False]
    for rank in ranks:
        reader = ranks[2 * rank["data"]]
        assert [rank[key] for key in ("digests", "row", "metrics")] == [reader[key] for key in ("digests", "row", "metrics")]
        assert (rank["keys"] == reader["keys"]) == rank["read"]
    assert len({rank["digests"][0] for rank in ranks}) == 2, "other shares, other rows"
    assert len({tuple(rank["row"]) for rank in ranks}) == 1
    assert len({rank["fault"] for rank in ranks}) == 1, "a fault of the reader is raised everywhere"
    assert "no clip of the split train serves these tasks" in ranks[0]["fault"]


def test_ranks_that_share_rows_are_those_of_one_data_parallel_rank() -> None:
    for tensor, data, pipeline in itertools.product((1, 2, 4), (1, 2, 3), (1, 2)):
        parallel = ParallelConfig(tensor_parallel_size=tensor, data_parallel_size=data, pipeline_parallel_size=pipeline)
        shares = sharing_ranks(data, tensor, tensor * data * pipeline)
        assert all(layouts.coordinates(rank, parallel)[1] == number for number, ranks in enumerate(shares) for rank in ranks)
        assert sorted(rank for ranks in shares for rank in ranks) == list(range(tensor * data * pipeline))
