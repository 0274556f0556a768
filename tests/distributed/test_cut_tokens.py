"""Four ranks: the products over tokens that are cut, and the exchange of gradients that every rank has whole, against one process."""

from pathlib import Path

import torch
import torch.distributed as dist
from ranks import run_ranks

from uniaudio.pretrain.parallel.sequence import gathered, gathered_linear, scattered_linear
from uniaudio.pretrain.parallel.whole_gradients import all_gather, reduce_scatter

TOKENS, INNER, WIDTH = 20, 12, 6


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def products() -> None:
    """down(tanh(up(x))) with `up` cut by rows and `down` by columns, each rank with 5 of 20 tokens."""
    rank, group = dist.get_rank(), dist.group.WORLD
    whole = {"x": random(TOKENS, WIDTH, seed=1), "up": random(INNER, WIDTH, seed=2), "down": random(WIDTH, INNER, seed=3)}
    whole |= {"up_bias": random(INNER, seed=4), "down_bias": random(WIDTH, seed=5)}
    upstream = random(TOKENS, WIDTH, seed=6)
    own = {name: tensor.chunk(4, dim=int(name == "down"))[rank] for name, tensor in whole.items() if name != "down_bias"}
    own["down_bias"] = whole["down_bias"]
    for leaf in (*whole.values(), *(own := {name: tensor.clone() for name, tensor in own.items()}).values()):
        leaf.requires_grad_()
    expected = torch.tanh(whole["x"] @ whole["up"].T + whole["up_bias"]) @ whole["down"].T + whole["down_bias"]
    expected.backward(upstream)
    inner = torch.tanh(gathered_linear(own["x"], own["up"], own["up_bias"], group))
    found = scattered_linear(inner, own["down"], own["down_bias"], group)
    found.backward(upstream.chunk(4)[rank])
    torch.testing.assert_close(gathered(found, group), expected)
    for name in ("x", "up", "up_bias", "down"):
        torch.testing.assert_close(own[name].grad, whole[name].grad.chunk(4, dim=int(name == "down"))[rank], msg=name)
    dist.all_reduce(own["down_bias"].grad)
    torch.testing.assert_close(own["down_bias"].grad, whole["down_bias"].grad)


def exchange() -> None:
    """Two data-parallel ranks by two tensor-parallel ones; shares of three entries, which two strips do not divide."""
    rank = dist.get_rank()
    tensor_group, data_group = (next(g for g in groups if rank in dist.get_process_group_ranks(g)) for groups in (pairs(1), pairs(2)))
    data_rank, gradients = dist.get_rank(data_group), [random(6, seed=seed) for seed in range(4)]
    share = slice(3 * data_rank, 3 * data_rank + 3)
    summed = reduce_scatter(gradients[rank], data_group, tensor_group)
    torch.testing.assert_close(summed, sum(gradients)[share])
    weights = torch.full((6,), torch.nan, dtype=torch.float64)
    weights[share] = random(6, seed=9)[share]
    all_gather(weights, share, data_group, tensor_group)
    assert torch.equal(weights, random(6, seed=9))


def pairs(step: int) -> list[dist.ProcessGroup]:
    """The groups of ranks so far apart; made by all ranks alike."""
    return [dist.new_group([first, first + step]) for first in ((0, 2) if step == 1 else (0, 1))]


def worker() -> None:
    dist.init_process_group("gloo")
    products()
    exchange()


def test_four_ranks_compute_what_one_does(tmp_path: Path) -> None:
    run_ranks(4, tmp_path, worker)
