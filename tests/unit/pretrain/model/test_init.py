"""Initial values depend on (seed, name) alone, whatever the cut."""

import pytest
import torch
from tiny_model import RELEASED_FORM, VOCABULARY, tiny_config

from uniaudio.pretrain.model.init import initialize_parameters, whole_tensor
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.parallel.tensor import TensorParallel, mark_cut


def test_same_seed_same_weights_and_another_seed_others() -> None:
    first, again, other = (MultiScaleTransformer(tiny_config(), VOCABULARY, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed.code.weight, other.embed.code.weight)
    assert not torch.equal(first.global_blocks[0].mlp.up.weight, first.global_blocks[1].mlp.up.weight)


def test_a_layer_alone_gets_the_values_that_it_has_in_the_model() -> None:
    config = tiny_config()
    whole, other = MultiScaleTransformer(config, VOCABULARY, seed=1), MultiScaleTransformer(config, VOCABULARY, seed=2)
    initialize_parameters(other.local_blocks[1], seed=1, config=config, tensor=TensorParallel(), prefix="local_blocks.1")
    assert all(torch.equal(a, b) for a, b in zip(whole.local_blocks[1].parameters(), other.local_blocks[1].parameters(), strict=True))


@pytest.mark.parametrize("size", [2, 4])
def test_slices_put_together_are_the_whole_tensor(size) -> None:
    config = tiny_config(**RELEASED_FORM)
    attention = "global_blocks.0.attention"
    names = [f"{attention}.qkv.weight", f"{attention}.qkv.bias", "global_blocks.1.mlp.down.weight"]
    model = MultiScaleTransformer(config, VOCABULARY, seed=5)
    for name in names:
        parameter = model.get_parameter(name)
        dim = parameter.partition_dim
        parts = []
        for rank in range(size):
            holder = torch.nn.ParameterDict()
            shape = [n // size if d == dim else n for d, n in enumerate(parameter.shape)]
            part = mark_cut(torch.nn.Parameter(torch.full(shape, torch.nan)), dim, TensorParallel(size, rank))
            holder[name.rsplit(".", 1)[1]] = part
            initialize_parameters(holder, seed=5, config=config, tensor=TensorParallel(size, rank), prefix=name.rsplit(".", 1)[0])
            parts.append(part.detach())
        assert torch.equal(torch.cat(parts, dim=dim), parameter.detach())


def test_rows_that_pad_the_vocabulary_are_zero() -> None:
    model = MultiScaleTransformer(tiny_config(), VOCABULARY, seed=5)
    for table in (model.embed.code, model.link.code, model.head.projection):
        assert len(table.weight) > VOCABULARY.size and table.weight[: VOCABULARY.size].abs().sum(dim=1).min() > 0
        assert table.weight[VOCABULARY.size :].abs().sum() == 0


def test_scale_follows_the_name() -> None:
    config = tiny_config(init_std=0.02, global_layers=8)
    assert abs(float(whole_tensor("embed.code.weight", (500, 500), seed=0, config=config).std()) - 0.02) < 2e-4
    assert abs(float(whole_tensor("global_blocks.0.mlp.down.weight", (500, 500), seed=0, config=config).std()) - 0.005) < 5e-5
    assert abs(float(whole_tensor("local_blocks.0.attention.out.weight", (500, 500), seed=0, config=config).std()) - 0.01) < 1e-4
    assert torch.equal(whole_tensor("link.norm.weight", (3,), seed=0, config=config), torch.ones(3))
    assert torch.equal(whole_tensor("global_blocks.0.attention.qkv.bias", (3,), seed=0, config=config), torch.zeros(3))
