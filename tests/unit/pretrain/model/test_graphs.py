"""Captured layers against the layers: the same bits on batches that the capture has not seen. On the CPU recorded calls stand for CUDA's
graphs; with a GPU (`-m gpu`) the same tests run with the real ones, in bf16 with the Triton kernels."""

import itertools

import pytest
import recorded_graphs
import torch
from tiny_model import PAPER_FORM, RELEASED_FORM, TIME_FORM, VOCABULARY, tiny_batch, tiny_config
from torch import nn

from uniaudio.errors import UserError
from uniaudio.pretrain.graphs import GraphedLayers
from uniaudio.pretrain.model.model import MultiScaleTransformer


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        recorded_graphs.stand_in(monkeypatch.setattr)
    return request.param


def build(device: str, *, recompute: str = "none", fp8: bool = False, **changes) -> MultiScaleTransformer:
    options = {"num_tasks": 2, "recompute": recompute, "fp8": fp8, "backend": "torch" if device == "cpu" else "triton"}
    model = MultiScaleTransformer(tiny_config(**changes), VOCABULARY, **options).to(device)
    return model if device == "cpu" else model.bfloat16()


def batch_of(model: MultiScaleTransformer, seed: int, **options) -> tuple[torch.Tensor, ...]:
    weight = model.link.linear.weight
    return tiny_batch(seed, **options).to(weight.device, float_dtype=weight.dtype).as_tuple()


def losses_and_gradients(model: MultiScaleTransformer, batch: tuple[torch.Tensor, ...]) -> list[torch.Tensor | None]:
    for parameter in model.parameters():
        parameter.grad = None
    sums, counts = model(batch)
    (sums * torch.arange(1, 7, device=sums.device).view(2, 3)).sum().backward()
    return [sums.detach(), counts, *(None if p.grad is None else p.grad.clone() for p in model.parameters())]


def assert_same(seen: list[torch.Tensor | None], wanted: list[torch.Tensor | None]) -> None:
    for one, other in zip(seen, wanted, strict=True):
        assert one is other is None or torch.equal(one, other)


def captured(model: MultiScaleTransformer, batch: tuple[torch.Tensor, ...], **options) -> GraphedLayers:
    losses_and_gradients(model, batch)  # compiles
    graphs = GraphedLayers(model.as_layers()[:-1], **options)
    assert not graphs.captured
    graphs.capture(batch)
    assert graphs.captured
    return graphs


CASES = {
    "paper": PAPER_FORM,
    "released": RELEASED_FORM,
    "time": TIME_FORM,
    "prefix": {"prefix_lm": True},
    "selective": {"recompute": "selective"},
    "full": {"recompute": "full"},
    "fp8": {"fp8": True, "local_num_heads": 2},
    "no local stack": {"structure": "parallel", "local_layers": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_replays_give_the_bits_of_the_layers_on_other_batches(name: str, device: str) -> None:
    model = build(device, **CASES[name])
    documents = [((7, 5, 0), (4, 3, 4)), ((3, 10, 0), (13, 0, 0)), ((13, 0, 0), (6, 6, 0))]
    batches = [batch_of(model, seed, documents=rows) for seed, rows in enumerate(documents)]
    plain = [losses_and_gradients(model, batch) for batch in batches]
    model.graphs = captured(model, batch_of(model, 9, documents=documents[0]))
    for batch, expected in zip(batches, plain):
        assert_same(losses_and_gradients(model, batch), expected)


@pytest.mark.parametrize("name", ["paper", "time", "selective", "full", "fp8"])
def test_in_pieces_the_bits_are_the_same_and_a_piece_may_get_its_weights_just_before_it_runs(name: str, device: str) -> None:
    model = build(device, **CASES[name])
    batches = [batch_of(model, seed) for seed in (1, 2)]
    plain = [losses_and_gradients(model, batch) for batch in batches]
    layers, bounds = model.as_layers(), [0, 2, 4, len(model.as_layers()) - 1]
    pieces = [*(layers[start:stop] for start, stop in itertools.pairwise(bounds)), layers[-1:]]
    weights = [[(own, own.detach().clone()) for layer in piece for own in layer.parameters()] for piece in pieces]
    told = []

    @torch.no_grad()
    def bring(piece: int) -> None:
        told.append(piece)
        for own, value in weights[piece]:
            own.copy_(value)

    model.graphs = captured(model, batch_of(model, 9), cuts=(2, 4), before_piece=bring)
    for batch, expected in zip(batches, plain):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert_same(losses_and_gradients(model, batch), expected)
    assert told == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("name", ["paper", "time", "selective", "full"])
def test_two_stages_with_two_micro_batches_under_way_give_the_bits_of_the_layers(name: str, device: str) -> None:
    """A pipeline's first stage begins a second micro-batch before it goes back through the first."""
    model = build(device, **CASES[name])
    documents = [((7, 5, 0), (4, 3, 4)), ((3, 10, 0), (13, 0, 0)), ((13, 0, 0), (6, 6, 0)), ((6, 6, 0), (7, 5, 0))]
    batches = [batch_of(model, seed, documents=rows) for seed, rows in enumerate(documents)]
    plain = [losses_and_gradients(model, batch) for batch in batches]
    before, after = model.as_layers()[:3], model.as_layers()[3:-1]
    first = [GraphedLayers(before) for _ in range(2)]
    last = GraphedLayers(after, continues=True)
    example = batch_of(model, 9, documents=documents[0])
    for graphs in first:
        graphs.capture(example)
    last.capture(first[0](example))
    under_way: list[tuple[torch.Tensor, ...]] = []
    for index in range(len(batches) + 1):
        if index < len(batches):
            under_way.append(first[index % 2](batches[index]))
        if index > 0:
            state = under_way.pop(0)
            for parameter in model.parameters():
                parameter.grad = None
            received = state[0].detach().clone().requires_grad_()
            sums, counts = model.head(last((received, *state[1:])))
            (sums * torch.arange(1, 7, device=sums.device).view(2, 3)).sum().backward()
            state[0].backward(received.grad)
            assert_same([sums.detach(), counts, *(p.grad for p in model.parameters())], plain[index - 1])


def test_weights_may_change_between_replays_and_frozen_ones_get_no_gradient(device: str) -> None:
    model = build(device)
    model.embed.requires_grad_(False)
    parameters, batch = dict(model.named_parameters()), batch_of(model, 1)
    graphs = captured(model, batch)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    plain = losses_and_gradients(model, batch)
    model.graphs = graphs
    assert_same(losses_and_gradients(model, batch), plain)
    assert [name for name, grad in zip(parameters, plain[2:]) if grad is None] == [name for name in parameters if name.startswith("embed.")]


def test_there_is_nothing_to_capture_where_the_head_alone_is_trained() -> None:
    layers = build("cpu").as_layers()[:-1]
    assert GraphedLayers(layers).trained
    for layer in layers:
        layer.requires_grad_(False)
    assert not GraphedLayers(layers).trained


def test_without_gradients_the_layers_themselves_run_whatever_the_shape(device: str) -> None:
    model = build(device)
    model.graphs = captured(model, batch_of(model, 1))
    other = batch_of(model, 2, documents=((5,),), frames=9)
    with torch.no_grad():
        sums, _ = model(other)
    model.graphs = None
    assert torch.equal(sums, model(other)[0])


def test_other_shapes_and_moved_parameters_are_refused(device: str) -> None:
    model = build(device)
    graphs = captured(model, batch_of(model, 1))
    with pytest.raises(ValueError, match=r"tensors of a batch for a CUDA graph \| seen: .*\[1, 13, 3\].* \| allowed: .*\[2, 13, 3\]"):
        graphs(batch_of(model, 1, documents=((5,),)))
    model.link.linear.weight.data = model.link.linear.weight.data.clone()
    with pytest.raises(ValueError, match="a parameter was given other memory since the CUDA graph was captured"):
        graphs(batch_of(model, 1))


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (state[0] * self.weight.sum().item(),)


def test_released_graphs_are_no_longer_there(device: str) -> None:
    graphs = captured(build(device), batch_of(build(device), 1))
    graphs.release()
    assert not graphs.captured
    with pytest.raises(ValueError, match="tensors of a batch for a CUDA graph"):
        graphs(batch_of(build(device), 1))
    graphs.release()


def test_a_layer_that_looks_at_a_value_ends_in_one_line(device: str) -> None:
    expected = (
        r"cannot be captured as a CUDA graph \| seen: .*not permitted.* \| remedy: train\.cuda_graphs=false launches kernel by kernel"
    )
    with torch.cuda.stream(torch.cuda.Stream() if device == "cuda" else None), pytest.raises(UserError, match=expected):
        GraphedLayers([Looks().to(device)]).capture((torch.ones(2, device=device),))
