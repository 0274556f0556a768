"""Fine-tuning: what is frozen stays bit for bit and costs no state, adapters resume exactly and merge into a plain model."""

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from ranks import run_ranks

from uniaudio.configs.finetune import FinetuneConfig
from uniaudio.pretrain import checkpoint, load_model
from uniaudio.pretrain.convert import convert_checkpoint
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.export import export_checkpoint
from uniaudio.pretrain.model import adapters
from uniaudio.pretrain.model.model import MultiScaleTransformer

LORA = {"lora": {"rank": 4, "alpha": 8.0, "layers": ["attention.qkv", "mlp.down"]}, "thaw": ["head.norm.*"]}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "bf16, ZeRO 1": {"zero": 1, "precision": "bf16"},
    "data 2, ZeRO 2": {"data_parallel_size": 2, "rows": 2, "zero": 2},
}


def go(function: Any, folder: Path, name: str, options: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    run = tiny_run.tiny_run(folder / name, **options)
    return run_ranks(run.parallel.world_size, folder / f"results {name}", function, config=run.model_dump(mode="json"), **arguments)[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `base` is a run of two steps."""
    folder = tmp_path_factory.mktemp("finetune")
    go(tiny_run.train, folder, "base", {}, stop=2, save_at=(2,))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_frozen_stays_bit_for_bit_and_owns_no_state(base: Path, layout: str) -> None:
    options = {**LAYOUTS[layout], "finetune": LORA, "init_from": str(base / "base")}
    found = go(tiny_run.changed, base, f"changed {layout}", options, steps=3)
    trained = [f"{stack}_blocks.{index}.{name}.adapter.{part}"
               for stack, count in (("global", 3), ("local", 1)) for index in range(count)
               for name in ("attention.qkv", "mlp.down") for part in "ab"]  # fmt: skip
    assert sorted(found["changed"]) == sorted(found["state"]) == sorted([*trained, "head.norm.weight", "head.norm.bias"])
    ranks = options.get("data_parallel_size", 1)
    size = 4 * (4 * (32 + 96) + 4 * (64 + 32)) + 64
    assert size <= found["optimized"][0] * ranks < size + 64, "and a little that makes even shares"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_with_adapters_resumes_exactly(base: Path, layout: str) -> None:
    name = f"resumed {layout}"
    options = {**LAYOUTS[layout], "finetune": LORA, "init_from": str(base / "base")}
    whole = go(tiny_run.train, base, name, options, stop=5, save_at=(3,))
    rest = go(tiny_run.train, base, name, options, stop=5, resume=True)
    assert rest["start"] == 3 and rest["steps"] == whole["steps"][3:]
    assert rest["valid"] == whole["valid"]


@torch.no_grad()
def test_merged_is_unmerged_and_nothing_else_need_know(base: Path, tmp_path: Path) -> None:
    options = {"finetune": LORA, "init_from": str(base / "base")}
    go(tiny_run.train, base, "tuned", options, stop=6, save_at=(6,))
    plain, merged = load_model(base / "base"), load_model(base / "tuned")
    unmerged = MultiScaleTransformer(plain.run.model, plain.vocabulary, num_tasks=2, seed=None)
    adapters.prepare(unmerged, FinetuneConfig.model_validate(LORA), seed=None)
    whole = convert_checkpoint(base / "tuned", tmp_path / "whole")
    read_whole(unmerged, whole)
    ids = torch.randint(0, 4212, (2, 9, 3), generator=torch.Generator().manual_seed(1))
    batch = merged._batch(ids, None, None, None)
    torch.testing.assert_close(unmerged.logits(batch), merged(ids), atol=1e-5, rtol=1e-5)
    assert (plain(ids) - merged(ids)).abs().max() > 1e-2, "it did learn something"
    export_checkpoint(base / "tuned", tmp_path / "out")
    exported = load_model(tmp_path / "out")
    assert torch.equal(exported(ids), merged(ids)) and not exported.run.finetune.active
    assert "fine-tuned | from base, adapters of rank 4" in (tmp_path / "out" / "README.md").read_text()


def read_whole(model: MultiScaleTransformer, path: Path) -> None:
    """Fills every parameter, adapters too, from a converted checkpoint."""
    from safetensors.torch import load_file

    weights = load_file(path / "weights-whole.safetensors")
    for name, parameter in model.named_parameters():
        parameter.zero_()
        parameter[: len(weights[name])] = weights[name]


def test_a_checkpoint_with_adapters_can_be_started_from(base: Path) -> None:
    """Its adapters are in the weights, and the new ones start at zero: the held-out loss is the same before any step."""
    options = {"finetune": LORA, "init_from": str(base / "base")}
    first = go(tiny_run.train, base, "first", options, stop=4, save_at=(4,))
    second = {"finetune": {"lora": {"rank": 2}}, "init_from": str(base / "first")}
    again = go(tiny_run.train, base, "second", second, stop=0)
    assert again["valid"] == pytest.approx(first["valid"], abs=1e-5)


def test_another_section_finetune_is_refused_on_resume(base: Path) -> None:
    options = {"finetune": LORA, "init_from": str(base / "base")}
    go(tiny_run.train, base, "refused", options, stop=1, save_at=(1,))
    with pytest.raises(AssertionError, match=r"was made with another section finetune \| seen: \{\} \| allowed: \{'lora': \{'rank': 4"):
        go(tiny_run.train, base, "refused", {}, stop=2, resume=True)


@torch.no_grad()
def test_adapters_begin_as_the_base_model_bit_for_bit() -> None:
    vocabulary = load_vocabulary("paper")
    model = MultiScaleTransformer(tiny_run.tiny_run("unused").model, vocabulary, num_tasks=2, seed=4)
    batch = tiny_run.global_batch(1, 2)
    before = model.logits(batch)
    adapters.prepare(model, FinetuneConfig.model_validate({"lora": {"rank": 3}}), seed=4)
    assert torch.equal(model.logits(batch), before)
    named = dict(model.named_parameters())
    a = named["global_blocks.0.mlp.up.adapter.a"]
    assert a.shape == (3, 32) and a.std().item() == pytest.approx(32**-0.5, rel=0.3)
    assert {name for name, p in named.items() if p.requires_grad} == {name for name in named if ".adapter." in name}
    assert len([name for name in named if ".adapter." in name]) == 4 * 4 * 2
    assert checkpoint.FORMAT == 1, "old checkpoints are read as before"
