"""The real model against the plain reference: logits, losses and the gradient of every parameter, in float64; causality; packing."""

import itertools
from dataclasses import replace

import pytest
import torch
from reference_model import reference
from tiny_model import PAPER_FORM, RELEASED_FORM, TIME_FORM, VOCABULARY, tiny_batch, tiny_config

from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.data.batch import HIDDEN, Batch
from uniaudio.pretrain.model.model import MultiScaleTransformer

MEGA = (VOCABULARY.special("<mega_global>"), VOCABULARY.special("<mega_local>"))
NUM_TASKS = 2


def build(config: ModelConfig, *, seed: int = 0, **options) -> MultiScaleTransformer:
    model = MultiScaleTransformer(config, VOCABULARY, num_tasks=NUM_TASKS, seed=seed, **options).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # biases and norms away from 0 and 1, where a wrong one would show nothing
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize("prefix_lm", [False, True])
@pytest.mark.parametrize(
    "form", [PAPER_FORM, RELEASED_FORM, {**PAPER_FORM, "gelu": "tanh"}, TIME_FORM], ids=["paper", "released", "tanh", "time"]
)
def test_logits_losses_and_every_gradient_equal_the_plain_reference(form, prefix_lm) -> None:
    config = tiny_config(prefix_lm=prefix_lm, **form)
    model, batch = build(config), tiny_batch(1)
    parameters = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    logits, sums, counts = reference(parameters, batch, config, vocabulary_size=VOCABULARY.size, mega=MEGA, num_tasks=NUM_TASKS)
    weights = torch.rand(sums.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (sums * weights).sum().backward()

    model_sums, model_counts = model(batch.as_tuple())
    (model_sums * weights).sum().backward()
    torch.testing.assert_close(model.logits(batch), logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model_sums, sums, rtol=1e-9, atol=1e-9)
    assert torch.equal(model_counts, counts) and counts.sum() == batch.target_count
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, f"{name} is never trained"
        torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-8, atol=1e-9, msg=name)


def test_hidden_history_is_counted_and_not_shown() -> None:
    model, batch = build(tiny_config()), tiny_batch(1)
    mask = batch.target_mask_BTQ.clone()
    hidden = torch.zeros_like(mask, dtype=torch.bool)
    hidden[0, 3] = True
    mask[hidden] = 1
    plain = replace(batch, target_mask_BTQ=mask)
    secret = replace(batch, target_mask_BTQ=mask.masked_fill(hidden, HIDDEN))
    masked = replace(plain, codes_BTQ=batch.codes_BTQ.masked_fill(hidden, VOCABULARY.audio_mask))
    assert secret.target_count == plain.target_count
    logits, shown, without = model.logits(secret), model.logits(plain), model.logits(masked)
    torch.testing.assert_close(logits[0, 4:], without[0, 4:])
    torch.testing.assert_close(logits[0, :4], shown[0, :4])
    assert not torch.allclose(logits[0, 4:7], shown[0, 4:7])
    assert torch.equal(model(secret.as_tuple())[1], model(plain.as_tuple())[1])
    assert torch.equal(logits[1], shown[1])


def test_products_in_8_bits_give_nearly_the_same_gradients() -> None:
    batch, found = tiny_batch(3), {}
    for form in ("plain", "fp8", "fp8, layers alone"):  # alone, as under ZeRO-3
        model = build(tiny_config(width=48, num_heads=2, local_num_heads=2, ffn_width=64), fp8=form != "plain")
        for block in (*model.global_blocks, *model.local_blocks) if "alone" in form else ():
            block.let_layers_run_alone()
        sums, counts = model(batch.as_tuple())
        sums.sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found[form] = float(sums.detach().sum() / counts.sum()), gradient
    plain, gradient = found.pop("plain")
    for form, (loss, other) in found.items():
        assert loss != plain and abs(loss - plain) < 0.02 * plain, form
        assert float(torch.cosine_similarity(gradient, other, dim=0)) > 0.97, form
    assert found["fp8"][0] != found["fp8, layers alone"][0], "the two paths differ in the scales of norm and gelu"


@pytest.mark.parametrize("fp8", [False, True])
def test_recomputed_activations_give_the_same_gradients(fp8) -> None:
    form = {"width": 48, "num_heads": 2, "local_num_heads": 2, "ffn_width": 64} if fp8 else {}
    batch, gradients = tiny_batch(3), []
    for recompute in ("none", "selective", "full"):
        model = build(tiny_config(**form), recompute=recompute, fp8=fp8)
        model(batch.as_tuple())[0].sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(kept, recomputed) for kept, *others in zip(*gradients, strict=True) for recomputed in others)


@pytest.mark.parametrize("form", [PAPER_FORM, RELEASED_FORM], ids=["paper", "released"])
def test_a_prediction_depends_on_no_later_code_and_on_no_other_document(form, monkeypatch) -> None:
    """Gradients of one logit row by the embedding of each input code: zero at and behind its own place, and outside its document."""
    model, batch = build(tiny_config(**form)), tiny_batch(4)
    batch = Batch(**{**batch.__dict__, "text_positions_BS": torch.full_like(batch.text_positions_BS, -1)})
    inputs: dict[str, torch.Tensor] = {}

    def watched(name):
        lookup = torch.nn.functional.embedding

        def forward(codes_XQ, positions_X, table, *, mode, backend):
            inputs[name] = lookup(codes_XQ, getattr(model, name).code.weight).detach().requires_grad_()
            return (inputs[name].sum(1) if mode == "sum" else inputs[name].flatten(1)) + table[positions_X]

        return forward

    monkeypatch.setattr(model.embed.code, "forward", watched("embed"))
    monkeypatch.setattr(model.link.code, "forward", watched("link"))
    logits = model.logits(batch)
    row, place, level, start, width = 0, 9, 1, 7, batch.codes_BTQ.shape[1]
    logits[row, place, level].square().sum().backward()
    by_frame = inputs["embed"].grad.abs().sum((1, 2)).view(2, width)
    assert (by_frame[row, start : place + 1] > 0).all(), "frames of its document before it (shifted one right) all matter"
    by_frame[row, start : place + 1] = 0
    assert by_frame.sum() == 0
    by_code = inputs["link"].grad.abs().sum(2).view(2, width, 3)
    assert (by_code[row, place, : level + 1] > 0).all()
    by_code[row, place, : level + 1] = 0
    assert by_code.sum() == 0


def single_documents(batch: Batch) -> list[tuple[int, int, Batch]]:
    """Each document of a packed batch as a batch of its own, with its row and first frame."""
    found = []
    rows, frames, _ = batch.codes_BTQ.shape
    for row in range(rows):
        starts = [int(start) for start in batch.document_starts_BD[row] if start < frames] + [frames]
        for index, (start, end) in enumerate(itertools.pairwise(starts)):
            places = batch.text_positions_BS[row : row + 1]
            inside = (places >= start) & (places < end)
            single = Batch(
                codes_BTQ=batch.codes_BTQ[row : row + 1, start:end],
                target_mask_BTQ=batch.target_mask_BTQ[row : row + 1, start:end],
                document_starts_BD=torch.tensor([[0]], dtype=torch.int32),
                prefix_lengths_BD=batch.prefix_lengths_BD[row : row + 1, index : index + 1],
                positions_BT=torch.arange(end - start, dtype=torch.int32).unsqueeze(0),
                text_states_BSC=batch.text_states_BSC[row : row + 1],
                text_positions_BS=torch.where(inside, places - start, -1),
                task_ids_BD=batch.task_ids_BD[row : row + 1, index : index + 1],
            )
            found.append((row, start, single))
    return found


@pytest.mark.parametrize("form", [PAPER_FORM, TIME_FORM], ids=["paper", "time"])
@pytest.mark.parametrize("prefix_lm", [False, True])
def test_packed_documents_equal_the_same_documents_alone(prefix_lm, form) -> None:
    model, batch = build(tiny_config(prefix_lm=prefix_lm, **form)), tiny_batch(5)
    packed, sums = model.logits(batch), model(batch.as_tuple())[0]
    alone_sums = torch.zeros_like(sums)
    for row, start, single in single_documents(batch):
        length = single.codes_BTQ.shape[1]
        torch.testing.assert_close(packed[row, start : start + length], model.logits(single)[0], rtol=1e-9, atol=1e-9)
        alone_sums += model(single.as_tuple())[0]
    torch.testing.assert_close(sums, alone_sums, rtol=1e-9, atol=1e-9)


def test_layers_are_listed_once_under_the_names_of_their_parameters() -> None:
    model = build(tiny_config())
    names = [f"{layer}.{name}" for layer, module in model.named_layers() for name, _ in module.named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]
    assert [name for name, _ in model.named_layers()] == [
        "embed", "global_blocks.0", "global_blocks.1", "link", "local_blocks.0", "local_blocks.1", "head",
    ]  # fmt: skip


def test_the_state_between_layers_can_cross_a_pipeline() -> None:
    state, shapes = tiny_batch(6).as_tuple(), []
    layers = build(tiny_config()).float().as_layers()
    for layer in layers[:-1]:
        state = layer(state)
        assert type(state) is tuple
        assert state[0].is_floating_point() and state[0].requires_grad and state[0].is_contiguous()
        assert all(tensor.dtype in (torch.int32, torch.int64) for tensor in state[1:])
        shapes.append(tuple(state[0].shape))
    assert shapes == [(26, 48)] * 3 + [(26, 3, 48)] * 3
    assert all(total.dtype == torch.float32 and total.shape == (2, 3) for total in layers[-1](state))


def test_bfloat16_parameters_give_losses_in_float32_close_to_those_of_float32() -> None:
    model, batch = build(tiny_config(init_std=0.05)).float(), tiny_batch(7)
    exact = model(batch.as_tuple())[0].detach()
    rounded = model.bfloat16()(batch.as_tuple())[0]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
