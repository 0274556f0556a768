"""Counts of operations and parameters against the measured formula and the real model."""

import pytest
from tiny_model import PAPER_FORM, RELEASED_FORM, VOCABULARY, tiny_config

from uniaudio.configs.flops import flops_per_frame, layer_flops, parameter_count
from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.model.model import MultiScaleTransformer


@pytest.mark.parametrize(("levels", "T"), [(3, 1024), (8, 1024), (3, 4096)])
def test_the_paper_model_has_the_flops_of_the_measured_formula(levels, T) -> None:
    d, V = 1536, 4352
    formula = 6 * (24 * 12 * d**2 + levels * 8 * 12 * d**2 + levels * d * V) + 3 * 24 * 2 * T * d
    assert flops_per_frame(ModelConfig(num_codebooks=levels), T, V) == pytest.approx(formula, rel=1e-12)


def test_layer_flops_follow_the_list_of_layers() -> None:
    config = tiny_config(global_layers=3, local_layers=2)
    costs = layer_flops(config, 8, VOCABULARY.size)
    model = MultiScaleTransformer(config, VOCABULARY)
    assert len(costs) == len(model.as_layers())
    by_name = dict(zip([name for name, _ in model.named_layers()], costs, strict=True))
    assert by_name["embed"] == by_name["link"] == 0
    assert by_name["local_blocks.0"] == 3 * (by_name["global_blocks.0"] - 3 * 2 * 8 * config.width)


@pytest.mark.parametrize("form", [PAPER_FORM, RELEASED_FORM], ids=["paper", "released"])
def test_parameter_count_is_that_of_the_model_without_padding_rows(form) -> None:
    config = tiny_config(**form)
    model = MultiScaleTransformer(config, VOCABULARY)
    real = sum(getattr(p, "valid_rows", p.shape[0]) * p[0].numel() for p in model.parameters())
    assert parameter_count(config, VOCABULARY.size) == real


def test_the_paper_model_has_about_one_billion_parameters() -> None:
    assert 0.9e9 < parameter_count(ModelConfig(), 4212) < 1.0e9
