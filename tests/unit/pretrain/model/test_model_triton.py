"""The whole model on the Triton kernels (in the interpreter where there is no GPU) against the torch path: losses and gradients."""

import pytest
import torch
from tiny_model import PAPER_FORM, RELEASED_FORM, VOCABULARY, tiny_batch, tiny_config

from uniaudio.configs.finetune import FinetuneConfig, LoraConfig
from uniaudio.pretrain.model import adapters
from uniaudio.pretrain.model.model import MultiScaleTransformer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


TUNED = FinetuneConfig(lora=LoraConfig(rank=2), thaw=("*.mlp.down.bias", "head.norm.*"))


@pytest.mark.parametrize(
    ("form", "finetune"),
    [({**PAPER_FORM, "prefix_lm": True, "gelu": "tanh"}, FinetuneConfig()), (RELEASED_FORM, FinetuneConfig()), (PAPER_FORM, TUNED)],
    ids=["paper", "released", "fine-tuned"],
)
def test_both_backends_give_the_same_losses_and_gradients(form, finetune) -> None:
    batch, found = tiny_batch(9, documents=((4, 3),), frames=8).to(DEVICE), {}
    for backend in ("torch", "triton"):
        model = MultiScaleTransformer(
            tiny_config(global_layers=1, local_layers=1, **form), VOCABULARY, num_tasks=2, backend=backend, seed=6
        )
        adapters.prepare(model, finetune, seed=6)
        model.to(DEVICE)
        sums, _ = model(batch.as_tuple())
        sums.sum().backward()
        trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in trained)
        found[backend] = {"sums": sums.detach()} | trained
    for name, truth in found["torch"].items():
        scale = float(truth.abs().max())
        torch.testing.assert_close(
            found["triton"][name], truth, rtol=1e-4, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_biases_that_sum_their_own_gradients_get_the_same() -> None:
    batch, found = tiny_batch(9, documents=((4, 3),), frames=8).to(DEVICE), []
    for chosen in (True, False):
        model = MultiScaleTransformer(tiny_config(global_layers=1, local_layers=1), VOCABULARY, num_tasks=2, backend="triton", seed=6)
        for block in (*model.global_blocks, *model.local_blocks):
            assert block.norm_sums_biases
            block.let_kernels_sum_biases(chosen)
        model.to(DEVICE)(batch.as_tuple())[0].sum().backward()
        found.append(
            {name: parameter.grad for name, parameter in model.named_parameters() if name.endswith(("qkv.bias", "out.bias", "down.bias"))}
        )
    assert len(found[0]) == 6
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_products_in_8_bits_are_the_same_on_both_backends() -> None:
    batch, found = tiny_batch(9, documents=((4, 3),), frames=8).to(DEVICE), {}
    config = tiny_config(global_layers=1, local_layers=1, width=32, num_heads=2, local_num_heads=2, ffn_width=64)
    for backend in ("torch", "triton"):
        model = MultiScaleTransformer(config, VOCABULARY, num_tasks=2, backend=backend, fp8=True, seed=6).to(DEVICE)
        assert all(block.fp8 == backend for block in (*model.global_blocks, *model.local_blocks))
        model(batch.as_tuple())[0].sum().backward()
        found[backend] = {parameter: value.grad for parameter, value in model.named_parameters()}
    for name, truth in found["torch"].items():
        assert float((found["triton"][name] - truth).norm()) <= 0.02 * float(truth.norm()) + 1e-6, name  # a tie may round the other way


def test_a_librarys_attention_is_called_by_its_name() -> None:
    batch = tiny_batch(9, documents=((4, 3),), frames=8)
    model = MultiScaleTransformer(tiny_config(global_layers=1, local_layers=1, attention="torch_varlen"), VOCABULARY, num_tasks=2, seed=6)
    with pytest.raises(ValueError, match="dtype of qkv_BTN3H with backend torch_varlen"):
        model(batch.as_tuple())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_losses_of_100_steps_stay_together_with_and_without_the_kernels() -> None:
    batches = [tiny_batch(number, documents=((4, 3),), frames=8).to("cuda") for number in range(4)]
    losses = {}
    for backend in ("torch", "triton"):
        model = MultiScaleTransformer(
            tiny_config(global_layers=2, local_layers=2, **PAPER_FORM), VOCABULARY, num_tasks=2, backend=backend, seed=6
        ).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        history = []
        for step in range(100):
            sums, _ = model(batches[step % len(batches)].as_tuple())
            loss = sums.sum() / 24
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses[backend] = torch.tensor(history)
    assert losses["torch"][-4:].mean() < 0.8 * losses["torch"][:4].mean()
    torch.testing.assert_close(losses["triton"], losses["torch"], rtol=1e-2, atol=0)
