import math

import pytest
import torch

from uniaudio.configs.optim import OptimConfig
from uniaudio.pretrain.optim import decays, gradient_norm, host_threads, learning_rate, make_optimizer


@pytest.mark.parametrize(("schedule", "half", "end"), [("constant", 1.0, 1.0), ("cosine", 0.55, 0.1), ("linear", 0.55, 0.1)])
def test_rate_warms_up_to_the_peak_and_ends_where_the_schedule_says(schedule: str, half: float, end: float) -> None:
    optim = OptimConfig(lr=2.0, warmup_steps=10, schedule=schedule, min_lr_ratio=0.1)
    assert learning_rate(optim, 1, 110) == pytest.approx(0.2)
    assert learning_rate(optim, 10, 110) == pytest.approx(2.0)
    assert learning_rate(optim, 60, 110) == pytest.approx(2.0 * half)
    assert learning_rate(optim, 110, 110) == pytest.approx(2.0 * end)
    assert learning_rate(optim, 500, 110) == pytest.approx(2.0 * end), "beyond the end it stays"


def test_rate_without_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0, schedule="constant"), 1, 10) == 1.0


def test_a_run_shorter_than_its_warm_up_stays_in_it() -> None:
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=100), 10, 10) == pytest.approx(0.1)


def test_only_matrices_of_projections_decay() -> None:
    from uniaudio.configs.model import ModelConfig
    from uniaudio.pretrain.data.vocabulary import load_vocabulary
    from uniaudio.pretrain.model.model import MultiScaleTransformer

    config = ModelConfig(width=16, num_heads=2, ffn_width=32, global_layers=1, local_layers=1, max_positions=8, text_width=8)
    model = MultiScaleTransformer(config, load_vocabulary("paper"))
    plain = {name for name, parameter in model.named_parameters() if not decays(name, parameter)}
    tables = {"embed.code.weight", "embed.position.weight", "link.code.weight", "link.level.weight"}
    assert plain == tables | {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
    groups = make_optimizer(OptimConfig(weight_decay=0.3), model.named_parameters()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert len(groups[1]["params"]) == len(plain)


def test_threads_of_a_step_on_the_host_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="a fault"), host_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ValueError("a fault")
    assert torch.get_num_threads() == before


def test_gradient_norm_is_that_of_one_vector() -> None:
    assert float(gradient_norm([torch.full((3,), 2.0), torch.tensor([[2.0]])], None)) == pytest.approx(4.0)
    assert float(gradient_norm([], None)) == 0.0
    assert math.isinf(float(gradient_norm([torch.tensor([math.inf])], None)))
