"""A run of another model than its checkpoint's is told before torch is imported, with every key that differs."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain import cli
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.recorded import FORMAT, MANIFEST, check_beginning, check_model


def save(output_dir: Path) -> Path:
    """The manifest of a checkpoint of demo_cpu; what a run's model is compared with."""
    run = load_config(RunConfig, "demo_cpu", folder="runs", overrides=["train.resume=false"])
    folder = output_dir / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    vocabulary = load_vocabulary(run.model.vocabulary, run.model.num_codebooks)
    numbering = {"fingerprint": vocabulary.fingerprint, "table": vocabulary.to_table()}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "config": run.model_dump(mode="json"), "vocabulary": numbering}))
    return folder


def begin(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> bool:
    """Whether `uniaudio train` comes so far as to start the work."""
    began: list[bool] = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(cli, "_train", lambda *given: began.append(True) or 0)
    CliRunner().invoke(cli.train, ["demo_cpu", *overrides], catch_exceptions=False)
    return bool(began)


@pytest.mark.parametrize("how", ["resume", "init_from"])
def test_every_key_that_differs_is_told_before_the_work(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, saved = save(tmp_path / "old"), load_config(RunConfig, "demo_cpu", folder="runs").model
    place = [f"train.output_dir={tmp_path / 'old'}"]
    if how == "init_from":
        place = [f"train.init_from={tmp_path / 'old'}", f"train.output_dir={tmp_path / 'new'}"]
    message = (
        f"checkpoint {folder} is of another model: model.width, model.global_layers | seen: {2 * saved.width}, {saved.global_layers + 1}"
        f" | allowed: {saved.width}, {saved.global_layers} | remedy: use the model section of the config"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        begin(monkeypatch, *place, f"model.width={2 * saved.width}", f"model.global_layers={saved.global_layers + 1}")
    assert begin(monkeypatch, *place, "optim.lr=1e-5")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.vocabulary=released", "was made with another vocabulary: "),
        ("finetune.lora={rank: 4}", "was made with another section finetune | seen: {'lora': {'rank': 4}} | allowed: {} |"),
    ],
)
def test_other_tokens_and_other_adapters_are_told_before_a_resume_and_may_begin_with_its_weights(
    override: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "old")
    whole = [f"train.init_from={tmp_path / 'old'}", "parallel.tensor_parallel_size=1", override]
    with pytest.raises(UserError, match=re.escape(f"checkpoint {folder} {told}")):
        begin(monkeypatch, *whole, f"train.output_dir={tmp_path / 'old'}")
    assert begin(monkeypatch, *whole, f"train.output_dir={tmp_path / 'new'}")


def test_what_must_not_be_resumed_is_told_and_what_cannot_be_read_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path)
    other = [f"train.output_dir={tmp_path}", "model.ffn_width=64"]
    with pytest.raises(UserError, match=r"train\.resume is false and train\.output_dir holds checkpoints \| seen: "):
        begin(monkeypatch, *other, "train.resume=false")
    (folder / MANIFEST).write_text("{")
    assert begin(monkeypatch, *other)


def test_places_that_are_no_parameters_may_be_more(tmp_path: Path) -> None:
    folder = save(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    model = load_config(RunConfig, "demo_cpu", folder="runs").model
    longer = model.model_copy(update={"max_positions": 2 * model.max_positions})
    if model.positions == "learned":
        with pytest.raises(UserError, match=r"another model: model\.max_positions \|"):
            check_model(folder, manifest, longer)
    manifest["config"]["model"]["positions"] = "time"
    check_model(folder, manifest, longer.model_copy(update={"positions": "time"}))


@pytest.mark.parametrize("key", ["global_layers", "local_layers"])
def test_a_model_of_fewer_layers_does_not_leave_weights_out(key: str, tmp_path: Path) -> None:
    folder = save(tmp_path)
    model = load_config(RunConfig, "demo_cpu", folder="runs").model
    fewer = model.model_copy(update={key: getattr(model, key) - 1})
    with pytest.raises(UserError, match=rf"another model: model\.{key} \| seen: {getattr(fewer, key)} \| allowed: {getattr(model, key)} "):
        check_model(folder, json.loads((folder / MANIFEST).read_text()), fewer)


def test_what_a_training_began_with_may_go_once_it_has_saved(tmp_path: Path) -> None:
    run = load_config(
        RunConfig, "demo_cpu", folder="runs", overrides=[f"train.output_dir={tmp_path}", f"train.init_from={tmp_path}/base/step-00000005"]
    )
    with pytest.raises(UserError, match=r"train\.init_from: nothing is there \| seen: .*/base/step-00000005 "):
        check_beginning(run)
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000010" / "manifest.json").write_text("{}")
    check_beginning(run)
