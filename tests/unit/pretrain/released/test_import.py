"""Importing the released files: exactly those parameters, no code run, one clear line for everything that is wrong."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import original_model as original
import pytest
import released_files as files
import torch
from click.testing import CliRunner
from released_files import SMALL_RANGES, small_shape

from uniaudio.cli import cli
from uniaudio.errors import UserError
from uniaudio.pretrain import load_model
from uniaudio.pretrain.checkpoint import load_weights, read_manifest, read_tokenizers
from uniaudio.pretrain.data.vocabulary import Vocabulary, load_vocabulary
from uniaudio.pretrain.export import model_shapes
from uniaudio.pretrain.released.arguments import known_tasks, read_vocabulary
from uniaudio.pretrain.released.importing import import_released
from uniaudio.pretrain.released.names import sources

SHAPE = small_shape()


class Released:
    """Files of a tiny released checkpoint in a folder; what is changed before `run` reaches the files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.tensors = original.state_dict(SHAPE, seed=1)
        self.arguments = files.arguments(SHAPE, SMALL_RANGES)
        self.checkpoint, self.config = folder / "ep1.checkpoint", folder / "config.yaml"

    def run(self, *, write_checkpoint: bool = True) -> Any:
        if write_checkpoint:
            files.write_checkpoint(self.checkpoint, self.tensors)
        files.write_config(self.config, self.arguments)
        return import_released(self.checkpoint, self.config, self.out)

    def fault(self, **options: bool) -> str:
        """The one line that the import ends with; nothing is written then."""
        with pytest.raises(UserError) as caught:
            self.run(**options)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
        assert not self.out.exists() and not list(self.folder.glob(".out*"))
        return str(caught.value)


@pytest.fixture
def released(tmp_path: Path) -> Released:
    return Released(tmp_path)


def test_every_parameter_has_its_counterpart(released: Released) -> None:
    description = released.run().description
    ours, theirs = sources(description.model), [name for source in sources(description.model).values() for name in source.names]
    assert ours.keys() == model_shapes(description.model, description.vocabulary).keys()
    assert sorted(theirs) == sorted(released.tensors), "each released parameter is used exactly once"
    numbers = sum(parameter.numel() for parameter in load_model(released.out).parameters())
    padding = (256 - SHAPE.ids) * (SHAPE.width // 3 + 2 * SHAPE.width)
    assert numbers - padding == sum(tensor.numel() for tensor in released.tensors.values())


def test_statistics_of_the_pickle_are_not_kept_and_stay_forbidden_elsewhere(released: Released) -> None:
    released.run()
    with pytest.raises(Exception, match="timedelta|numpy"):
        torch.load(released.checkpoint, weights_only=True)


def test_precision_of_the_file_is_kept(released: Released) -> None:
    released.tensors = {name: tensor.bfloat16() for name, tensor in released.tensors.items()}
    released.run()
    loaded = load_model(released.out)
    assert torch.equal(loaded.model.link.code.weight[: SHAPE.ids], released.tensors["l_emb.weight"].float())


class Evil:
    """A pickle of it runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_pickled_code_is_refused_and_not_run(released: Released) -> None:
    trace = released.folder / "trace"
    torch.save({"model": released.tensors, "reporter": Evil(trace)}, released.checkpoint)
    assert "asks for code to be run; it was not read | seen: posix.system" in released.fault(write_checkpoint=False)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["missing", "empty", "text", "truncated", "no model", "a list", "not a tensor", "whole numbers"])
def test_file_that_is_no_released_checkpoint(released: Released, name: str) -> None:
    path = files.write_checkpoint(released.checkpoint, released.tensors)
    contents: dict[str, Any] = {
        "no model": {"weights": {}},
        "a list": [1, 2],
        "not a tensor": {"model": {**released.tensors, "g_ln.bias": "zeros"}},
        "whole numbers": {"model": {**released.tensors, "g_ln.bias": torch.zeros(48, dtype=torch.int64)}},
    }
    if name == "missing":
        path.unlink()
    elif name in contents:
        torch.save(contents[name], path)
    else:
        path.write_bytes({"empty": b"", "text": b"version https://git-lfs", "truncated": path.read_bytes()[:-3000]}[name])
    line = released.fault(write_checkpoint=False)
    expected = {"missing": "no such checkpoint", "no model": "holds no model", "a list": "holds no model"}
    dense = "g_ln.bias is not a dense tensor of numbers"
    assert (expected | {"not a tensor": dense, "whole numbers": dense}).get(name, "is not a whole torch file") in line


def test_missing_parameters_are_named(released: Released) -> None:
    for layer in range(2):
        del released.tensors[f"g_layers.{layer}.attn.query.bias"]
    line = released.fault()
    assert "parameters are missing from the checkpoint | seen: g_layers.0.attn.query.bias, g_layers.1.attn.query.bias | remedy" in line


def test_unknown_parameters_are_named(released: Released) -> None:
    released.tensors["g_layers.0.attn.key.bias"] = torch.zeros(48)
    released.tensors |= {f"g_layers.2.extra.{number}": torch.zeros(1) for number in range(5)}
    assert "does not have | seen: g_layers.0.attn.key.bias, g_layers.2.extra.0, g_layers.2.extra.1" in released.fault()
    assert "and 2 more" in released.fault()


def test_yaml_of_another_model_is_told_by_its_depth_or_its_shapes(released: Released) -> None:
    released.arguments["n_layer"] = 4
    assert "parameters are missing from the checkpoint | seen: g_layers.2." in released.fault()
    released.arguments |= {"n_layer": 2, "block_size": 32}
    assert "the checkpoint's g_pos.weight has another shape | seen: (16, 48) | allowed: (32, 48)" in released.fault()


def test_yaml_with_another_vocabulary_is_refused(released: Released) -> None:
    released.arguments["token_list"] = files.token_list({**SMALL_RANGES, "sing_phone": 4})
    line = released.fault()
    assert "g_emb.weight has another shape | seen: (175, 16) | allowed: (179, 16)" in line
    assert "--config must be the YAML that this checkpoint's own training saved" in line


def test_name_given_with_and_without_prefix(released: Released) -> None:
    released.tensors["module.g_ln.bias"] = released.tensors["g_ln.bias"]
    assert "g_ln.bias stands twice" in released.fault()


def test_values_that_are_not_finite(released: Released) -> None:
    released.tensors["l_layers.0.attn.key.weight"][3, 4] = float("nan")
    assert "not finite | seen: l_layers.0.attn.query.weight l_layers.0.attn.key.weight" in released.fault()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": None}, "n_layer is empty | seen: nothing (null) | allowed: a whole number"),
        ({"n_head": 5}, "n_embd is no multiple of 8 x n_head | seen: n_embd 48, n_head 5"),
        ({"non_acoustic_repeat": 5, "token_list": files.token_list(SMALL_RANGES)}, "does not divide n_embd | seen: 5, n_embd 48"),
        ({"megabytes": False}, "not the multi-scale architecture | seen: megabytes False"),
        ({"token_list": ["<pad>", "<audio_0>"]}, "token_list lacks special tokens | seen: <continuous_token> <start>"),
        ({"token_list": files.token_list({"phone": 3})}, "token_list has no tokens <audio_0>"),
        (
            {"token_list": files.token_list({"audio": 30})},
            "audio is not 3 levels and the mask | seen: 30 tokens | allowed: Q x entries + 1",
        ),
        ({"token_list": [*files.token_list(SMALL_RANGES), "<phone_0>"]}, "token_list from id 175: not <NAME_0> <NAME_1>"),
        ({"token_list": [*files.token_list(SMALL_RANGES), "<late>"]}, "token_list from id 175: not <NAME_0> <NAME_1>"),
        ({"token_list": ["<pad>", *files.token_list(SMALL_RANGES)]}, "a special token stands twice | seen: <pad>"),
    ],
)
def test_yaml_that_is_wrong(released: Released, changes: dict[str, Any], message: str) -> None:
    released.arguments |= changes
    assert message in released.fault()


def test_yaml_without_a_key_or_missing(released: Released) -> None:
    del released.arguments["token_list"]
    assert "config.yaml: token_list is missing" in released.fault()
    with pytest.raises(UserError, match="no such file"):
        import_released(released.checkpoint, released.folder / "nothing.yaml", released.out)


def test_nothing_is_overwritten(released: Released) -> None:
    released.out.mkdir()
    (released.out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="there is something already"):
        released.run()
    assert [path.name for path in released.out.iterdir()] == ["thesis.txt"]


# ---- the folder ----


def test_folder_says_what_it_is(released: Released) -> None:
    released.run()
    assert sorted(path.name for path in released.out.iterdir()) == [
        "README.md",
        "config.yaml",
        "manifest.json",
        "vocabulary.yaml",
        "weights-whole.safetensors",
    ]
    manifest = read_manifest(released.out)
    written = load_vocabulary(str(released.out / "vocabulary.yaml"))
    assert Vocabulary.from_table(manifest["vocabulary"]["table"]).fingerprint == written.fingerprint
    assert manifest["origin"]["file"] == "ep1.checkpoint" and len(manifest["origin"]["sha256"]) == 64
    assert read_tokenizers(released.out) == {}
    card = (released.out / "README.md").read_text()
    assert "| global Transformer | 2 layers, width 48, 2 heads, FFN 192 |" in card
    assert "| vocabulary | 175 ids" in card and "None were measured." in card
    assert "uniaudio generate" not in card, "no tokenizers"


def test_it_can_be_fine_tuned_from(released: Released, tmp_path: Path) -> None:
    """`train.init_from` reads the folder: every parameter of an engine gets the imported value."""
    from uniaudio.configs.load import load_config
    from uniaudio.configs.run import RunConfig
    from uniaudio.pretrain.model.model import MultiScaleTransformer
    from uniaudio.pretrain.parallel.layout import Layout
    from uniaudio.pretrain.parallel.named_state import make_slot

    released.run()
    loaded = load_model(released.out)
    run = load_config(RunConfig, released.out / "config.yaml", folder="runs")
    vocabulary = load_vocabulary(run.model.vocabulary)
    fresh = MultiScaleTransformer(run.model, vocabulary, seed=0)

    class Collector:
        """What loading needs of an engine."""

        def __init__(self) -> None:
            self.slots = [make_slot(name, parameter, Layout()) for name, parameter in fresh.named_parameters()]
            self.values: dict[str, torch.Tensor] = {}
            self.state, self.run = self, SimpleNamespace(model=fresh.config)

        def write(self, slot, tensors):
            assert set(tensors) == {"weight"}
            self.values[slot.name] = tensors["weight"]

    engine = Collector()
    load_weights(released.out, engine, vocabulary)  # type: ignore[arg-type]
    expected = dict(loaded.model.named_parameters())
    assert engine.values.keys() == expected.keys()
    for name, value in engine.values.items():
        assert torch.equal(value, expected[name][: len(value)]), name
    with pytest.raises(UserError, match="was made with another vocabulary"):
        load_weights(released.out, engine, load_vocabulary("paper"))  # type: ignore[arg-type]


def test_commands_import_and_generate_says_that_it_lacks_tokenizers(released: Released) -> None:
    files.write_checkpoint(released.checkpoint, released.tensors, prefix="module.")
    files.write_config(released.config, released.arguments)
    options = ["--checkpoint", str(released.checkpoint), "--config", str(released.config), "--out", str(released.out)]
    result = CliRunner().invoke(cli, ["checkpoint", "import-released", *options])
    assert result.exit_code == 0, result.output
    assert "2 + 1 layers, width 48, 2 heads; vocabulary its own" in result.output
    out = ["--out", str(released.folder / "out.wav")]
    result = CliRunner().invoke(cli, ["generate", "--checkpoint", str(released.out), "--task", "vc", *out])
    assert isinstance(result.exception, UserError)
    assert "its shards have no such view" in str(result.exception)


# ---- the vocabulary ----


def test_table_without_a_task_is_refused(released: Released) -> None:
    released.arguments["token_list"] = [token.replace("_task>", "_other>") for token in released.arguments["token_list"]]
    assert "the vocabulary has the tokens of no task | seen: config" in released.fault()


def test_published_token_list_is_the_shipped_table() -> None:
    table = read_vocabulary(tuple(files.token_list(files.RANGES)), 3, source=Path("config.yaml"))
    shipped = load_vocabulary("released")
    assert table.fingerprint == shipped.fingerprint
    assert set(known_tasks(shipped)) == {"tts", "vc", "se", "tse", "svs", "sound", "music", "a_edit", "sd", "i_tts", "s_edit"} | {
        "asr",
        "plain_tts",
        "continuation",
    }


def test_unused_ids_between_special_tokens_stay_where_they_are() -> None:
    tokens = files.token_list(SMALL_RANGES)
    tokens[60] = "<late_task>"
    table = read_vocabulary(tuple(tokens), 3, source=Path("config.yaml"))
    assert table.special("<late_task>") == 60
    assert table.token_name(59) == table.specials[59] == "<unused_59>"
    assert table.token_name(61) == "<unused_61>"
    assert "svs" not in known_tasks(table), "no tokens of singing"
    assert {"tts", "vc", "sound"} <= set(known_tasks(table))
