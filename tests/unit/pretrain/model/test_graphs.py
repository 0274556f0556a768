"""Captured layers against the layers: the same bits on batches that the capture has not seen. Recorded calls stand for CUDA's graphs."""

import pytest
import recorded_graphs
import torch
from tiny_model import PAPER_FORM, RELEASED_FORM, TIME_FORM, VOCABULARY, tiny_batch, tiny_config
from torch import nn

from uniaudio.errors import UserError
from uniaudio.pretrain.graphs import GraphedLayers
from uniaudio.pretrain.model.model import MultiScaleTransformer


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_graphs.stand_in(monkeypatch.setattr)


def build(**changes) -> MultiScaleTransformer:
    recompute = changes.pop("recompute", "none")
    return MultiScaleTransformer(tiny_config(**changes), VOCABULARY, num_tasks=2, recompute=recompute)


def losses_and_gradients(model: MultiScaleTransformer, seed: int, documents) -> list[torch.Tensor]:
    for parameter in model.parameters():
        parameter.grad = None
    sums, counts = model(tiny_batch(seed, documents=documents).as_tuple())
    (sums * torch.arange(1, 7).view(2, 3)).sum().backward()
    return [sums.detach(), counts, *(parameter.grad.clone() for parameter in model.parameters())]


CASES = {
    "paper": PAPER_FORM,
    "released": RELEASED_FORM,
    "time": TIME_FORM,
    "prefix": {"prefix_lm": True},
    "selective": {"recompute": "selective"},
    "full": {"recompute": "full"},
    "no local stack": {"structure": "parallel", "local_layers": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_replays_give_the_bits_of_the_layers_on_other_batches(name: str) -> None:
    model = build(**CASES[name])
    batches = [(1, ((7, 5), (4, 3, 4))), (2, ((3, 10), (13,))), (3, ((13,), (6, 6)))]
    width = max(len(row) for _, documents in batches for row in documents)
    batches = [(seed, tuple((*row, *(0,) * (width - len(row))) for row in documents)) for seed, documents in batches]
    plain = [losses_and_gradients(model, *batch) for batch in batches]
    graphs = GraphedLayers(model.as_layers()[:-1])
    graphs.capture(tiny_batch(9, documents=batches[0][1]).as_tuple())
    model.graphs = graphs
    for batch, expected in zip(batches, plain):
        for seen, wanted in zip(losses_and_gradients(model, *batch), expected, strict=True):
            assert torch.equal(seen, wanted)


def test_weights_may_change_between_replays_and_frozen_ones_get_no_gradient() -> None:
    model = build()
    model.embed.requires_grad_(False)
    parameters = dict(model.named_parameters())
    graphs = GraphedLayers(model.as_layers()[:-1])
    graphs.capture(tiny_batch(1).as_tuple())
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    found = []
    for model.graphs in (None, graphs):
        for parameter in model.parameters():
            parameter.grad = None
        model(tiny_batch(2).as_tuple())[0].sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert [grad is None for grad in found[0]] == [name.startswith("embed.") for name in parameters]
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*found))


def test_without_gradients_the_layers_themselves_run_whatever_the_shape() -> None:
    model = build()
    model.graphs = GraphedLayers(model.as_layers()[:-1])
    model.graphs.capture(tiny_batch(1).as_tuple())
    other = tiny_batch(2, documents=((5,),), frames=9)
    with torch.no_grad():
        sums, _ = model(other.as_tuple())
    model.graphs = None
    assert torch.equal(sums, model(other.as_tuple())[0])


def test_other_shapes_and_moved_parameters_are_refused() -> None:
    model = build()
    graphs = GraphedLayers(model.as_layers()[:-1])
    assert not graphs.captured
    graphs.capture(tiny_batch(1).as_tuple())
    assert graphs.captured
    with pytest.raises(ValueError, match=r"tensors of a batch for a CUDA graph \| seen: .*\[1, 13, 3\].* \| allowed: .*\[2, 13, 3\]"):
        graphs(tiny_batch(1, documents=((5,),)).as_tuple())
    model.link.linear.weight.data = model.link.linear.weight.data.clone()
    with pytest.raises(ValueError, match="a parameter was given other memory since the CUDA graph was captured"):
        graphs(tiny_batch(1).as_tuple())


def test_a_layer_that_looks_at_a_value_ends_in_one_line() -> None:
    class Looks(nn.Module):
        def forward(self, state):
            return (state[0] * state[0].sum().item(),)

    layer = Looks()
    layer.weight = nn.Parameter(torch.ones(2))
    expected = (
        r"cannot be captured as a CUDA graph \| seen: operation not permitted.* \| remedy: train\.cuda_graphs=false launches kernel by"
    )
    with pytest.raises(UserError, match=expected):
        GraphedLayers([layer]).capture((torch.ones(2),))
