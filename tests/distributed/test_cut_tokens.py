"""The products over tokens that are cut, a block of them with the kernels, and the exchange of gradients that every rank has whole."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.model.blocks import GlobalBlock
from uniaudio.pretrain.model.init import initialize_parameters
from uniaudio.pretrain.parallel.sequence import gathered, gathered_linear, scattered_linear
from uniaudio.pretrain.parallel.tensor import TensorParallel, is_cut
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


def four() -> None:
    dist.init_process_group("gloo")
    products()
    exchange()


def block(backend: str, tensor: TensorParallel, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output of a global block for this rank's frames, and the gradients, of what is whole summed over the ranks."""
    config = ModelConfig(width=32, num_heads=2, ffn_width=64, global_layers=1, local_layers=1, max_positions=32)
    made = GlobalBlock(config, tensor=tensor, backend=backend, recompute="none")
    initialize_parameters(made, seed=1, config=config, tensor=tensor, prefix="global_blocks.0")
    codes, starts = torch.zeros(2, 8, 3, dtype=torch.int64), torch.tensor([[0, 5], [0, 8]], dtype=torch.int32)
    own = hidden[tensor.own(16)].clone().requires_grad_()
    output = made((own, codes, codes.int(), starts, torch.zeros_like(starts), torch.zeros_like(starts), codes[..., 0].int()))[0]
    (output * torch.linspace(-1, 1, 16)[tensor.own(16), None]).sum().backward()
    found = {"output": gathered(output, tensor.group), "input": gathered(own.grad, tensor.group)}
    for name, parameter in made.named_parameters():
        grad = parameter.grad
        if is_cut(parameter):
            grad = gathered(grad.movedim(parameter.partition_dim, 0), tensor.group).movedim(0, parameter.partition_dim)
        elif tensor.group is not None:
            dist.all_reduce(grad)
        found[name] = grad
    return found


def two() -> None:
    dist.init_process_group("gloo")
    hidden = random(16, 32, seed=7).float()
    one = block("torch", TensorParallel(), hidden)
    cut = block("triton", TensorParallel(2, dist.get_rank(), dist.group.WORLD), hidden)
    for name, expected in one.items():
        torch.testing.assert_close(cut[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_four_ranks_compute_what_one_does(tmp_path: Path) -> None:
    run_ranks(4, tmp_path, four)


@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo processes on the CPU, Triton in its interpreter")
def test_a_cut_block_with_the_kernels_is_the_whole_block(tmp_path: Path) -> None:
    """There the norms and the packed bias's kernel give the biases their gradients, as on one card."""
    run_ranks(2, tmp_path, two)
