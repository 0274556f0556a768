"""The whole model on the Triton kernels (in the interpreter where there is no GPU) against the torch path: losses and gradients."""

import pytest
import torch
from tiny_model import PAPER_FORM, RELEASED_FORM, VOCABULARY, tiny_batch, tiny_config

from uniaudio.pretrain.model.model import MultiScaleTransformer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("form", [{**PAPER_FORM, "prefix_lm": True, "gelu": "tanh"}, RELEASED_FORM], ids=["paper", "released"])
def test_both_backends_give_the_same_losses_and_gradients(form) -> None:
    batch, found = tiny_batch(9, documents=((4, 3),), frames=8).to(DEVICE), {}
    for backend in ("torch", "triton"):
        model = MultiScaleTransformer(
            tiny_config(global_layers=1, local_layers=1, **form), VOCABULARY, num_tasks=2, backend=backend, seed=6
        ).to(DEVICE)
        sums, _ = model(batch.as_tuple())
        sums.sum().backward()
        found[backend] = {"sums": sums.detach()} | {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, truth in found["torch"].items():
        scale = float(truth.abs().max())
        torch.testing.assert_close(
            found["triton"][name], truth, rtol=1e-4, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )
