"""The section finetune: what it freezes, what it refuses, and what a plan says of it."""

import pytest
from click.testing import CliRunner

from uniaudio.configs.estimate import memory_gb, seconds_per_step
from uniaudio.configs.finetune import FinetuneConfig, LoraConfig
from uniaudio.configs.flops import parameter_shapes
from uniaudio.configs.load import load_config
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.plan_cli import plan
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.export import model_shapes, model_slots

ALONE = ("data.shards=s", "parallel.data_parallel_size=1", "train.init_from=there")
RANK = "finetune.lora.rank=8"


def run(*overrides: str) -> RunConfig:
    return load_config(RunConfig, "paper_1b", folder="runs", overrides=[*ALONE, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((RANK, "train.init_from=null"), r"initial, random values \| seen: train.init_from none"),
        (("finetune.lora.rank=100000",), r"finetune.lora.rank exceeds model.width \| seen: 100000 \| allowed: 0 to 1536"),
        ((RANK, "parallel.tensor_parallel_size=2"), r"whole weights \| seen: parallel.tensor_parallel_size 2, .*0 to 2, false"),
        ((RANK, "parallel.pipeline_parallel_size=2"), r"parallel.pipeline_parallel_size 2"),
        ((RANK, "parallel.zero_stage=3"), r"parallel.zero_stage 3"),
        ((RANK, "train.fp8=true"), r"train.fp8 true"),
        (("finetune.freeze=[embedding.*]",), r"finetune.freeze: no parameter of that name \| seen: embedding.\*"),
        ((RANK, "finetune.thaw=[heads.*]"), r"finetune.thaw: no parameter of that name"),
        (("finetune.freeze=['*']",), r"finetune.freeze leaves nothing to train"),
        (("finetune.thaw=[head.*]",), r"thaw without freeze and without adapters"),
        (("finetune.lora.layers=[attention]",), r"finetune.lora.layers"),
        (("finetune.lora.layers=[]",), r"finetune.lora.layers"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(*overrides)


def test_patterns_freeze_thaw_and_leave_adapters_alone() -> None:
    tune = FinetuneConfig(freeze=("embed.*", "*_norm.*"), thaw=("embed.text.*",))
    assert [tune.trains(name) for name in ("embed.code.weight", "embed.text.bias", "local_blocks.0.mlp_norm.bias", "head.norm.bias")] == [
        False,
        True,
        False,
        True,
    ]
    lora = FinetuneConfig(lora=LoraConfig(rank=2))
    assert lora.trains("global_blocks.0.mlp.up.adapter.a") and not lora.trains("head.norm.bias")
    some = LoraConfig(rank=2, layers=("mlp.up",), stacks=("local",))
    names = ("local_blocks.11.mlp.up.weight", "global_blocks.1.mlp.up.weight", "local_blocks.1.mlp.up.bias", "link.linear.weight")
    assert [some.adapts(name) for name in names] == [True, False, False, False]
    assert not LoraConfig().adapts(names[0])


@pytest.mark.parametrize("form", [{}, {"embedding": "concat", "link": "split"}])
def test_names_and_shapes_are_those_of_the_model(form: dict) -> None:
    config = ModelConfig(width=48, num_heads=2, ffn_width=64, global_layers=2, local_layers=1, max_positions=32, text_width=8, **form)
    vocabulary = load_vocabulary("paper")
    assert parameter_shapes(config, vocabulary.size) == model_shapes(config, vocabulary)


def test_a_plan_counts_states_of_what_is_trained_alone() -> None:
    config = run(RANK)
    slots = model_slots(config.model, load_vocabulary("paper"), config.finetune)
    trained, frozen = (sum(slot.parameter.numel() for slot in slots if slot.trained == kind) for kind in (True, False))
    assert trained == 8 * 32 * (4 * 1536 + 2 * 1536 + 2 * (1536 + 6144)), "rank x blocks x (inputs + outputs)"
    assert memory_gb(config).states == pytest.approx((16 * trained + 2 * frozen) / 1e9)
    whole, tuned = (seconds_per_step(each, gpu="H100", mfu=0.5) for each in (run(), config))
    assert 0.67 < tuned / whole < 0.75, "two thirds of the blocks' products, the rest as before"
    text = CliRunner().invoke(plan, ["paper_1b", *ALONE, RANK], catch_exceptions=False).output
    assert f", {trained / 1e6:,.2f} M trained" in text
    assert "trained" not in CliRunner().invoke(plan, ["paper_1b", *ALONE], catch_exceptions=False).output
