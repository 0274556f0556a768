"""The path of each op is chosen when the model is built."""

import logging

from tiny_model import VOCABULARY, tiny_config

from uniaudio.log import get_logger
from uniaudio.pretrain.model import backend
from uniaudio.pretrain.model.model import MultiScaleTransformer


def test_an_op_without_a_triton_kernel_takes_the_torch_path_and_the_log_says_so(monkeypatch, caplog) -> None:
    monkeypatch.setattr(backend, "TRITON_OPS", frozenset(backend.OPS) - {"linear_cross_entropy"})
    monkeypatch.setattr(get_logger(), "propagate", True)  # pytest listens at the root
    with caplog.at_level(logging.INFO, logger="uniaudio"):
        model = MultiScaleTransformer(tiny_config(), VOCABULARY, backend="triton", seed=None)
    assert (model.head.backend, model.head.norm.backend, model.embed.backend) == ("torch", "triton", "triton")
    assert "kernels: triton; plain PyTorch for linear_cross_entropy" in caplog.text
    caplog.clear()
    model = MultiScaleTransformer(tiny_config(), VOCABULARY, backend="torch", seed=None)
    assert model.local_blocks[0].backend == model.global_blocks[0].backend == "torch"
    assert caplog.text == ""
