"""Every field of every section, given what it does not take: one line in this project's words, with key, value and what is allowed."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

import uniaudio.configs
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.codec import CodecConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import validate
from uniaudio.configs.run import RunConfig
from uniaudio.configs.section import Section
from uniaudio.configs.simulate import SimulateConfig
from uniaudio.errors import UserError

WRONG: list[Any] = ["never", 12.5, -7, None, {"x": None}, {3: "y"}, [1], [["a"]], [{"effect": "echo"}]]
PYDANTIC = ("Input", "should", "validation", "valid ", "[type", "typing", "<class", "Literal", "function-", "Field required")


def sections() -> list[type[Section]]:
    """Every section that is defined in configs/."""
    for module in pkgutil.iter_modules(uniaudio.configs.__path__):
        import_module(f"uniaudio.configs.{module.name}")

    def below(kind: type[Section]) -> Iterator[type[Section]]:
        for inner in kind.__subclasses__():
            yield inner
            yield from below(inner)

    found = dict.fromkeys(below(Section))
    return [kind for kind in found if kind.__module__.startswith("uniaudio.configs.")]


FIELDS = [(kind, name) for kind in sections() for name in kind.model_fields]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[f"{kind.__name__}.{name}" for kind, name in FIELDS])
def test_a_wrong_value_is_told_with_what_is_allowed(kind: type[Section], name: str) -> None:
    told = []
    for wrong in WRONG:
        try:
            validate(kind, {name: wrong}, source="mine.yaml")
        except UserError as error:
            told.append(str(error))
    told = [line for line in told if line.startswith((f"mine.yaml: {name}", f"mine.yaml: unknown key {name}"))]
    assert told, "something of this is refused"
    for line in told:
        assert "\n" not in line and not any(word in line for word in PYDANTIC), line
    assert all(" | seen: " in line and " | allowed: " in line for line in told if "not a value of this key" in line)


RUN = {"data": {"shards": "s", "tasks": ["tts"]}, "train": {"output_dir": "o", "steps": 1}}


@pytest.mark.parametrize(
    ("kind", "tree", "message"),
    [
        (
            RunConfig,
            {**RUN, "train": {**RUN["train"], "cuda_graphs": "never"}},
            "x: train.cuda_graphs: not a value of this key | seen: never | allowed: auto, true, false"
            " | remedy: for example train.cuda_graphs=auto, the default",
        ),
        (
            RunConfig,
            {**RUN, "model": {"kernels": "trition"}},
            "x: model.kernels: not a value of this key | seen: trition | allowed: auto, triton, torch | remedy: did you mean triton?",
        ),
        (
            RunConfig,
            {**RUN, "data": {"shards": 5, "tasks": ["tts"]}},
            "x: data.shards: not a value of this key (and 1 more) | seen: 5 | allowed: text or a list of texts",
        ),
        (
            RunConfig,
            {**RUN, "optim": {"betas": [0.9]}},
            "x: optim.betas: not a value of this key | seen: [0.9] | allowed: a list of 2 numbers, each at least 0, below 1"
            " | remedy: for example optim.betas=[0.9, 0.95], the default",
        ),
        (
            RunConfig,
            {**RUN, "train": {"output_dir": "o", "steps": 1, "init_from": 3}},
            "x: train.init_from: not a value of this key | seen: 3 | allowed: text, not empty or null",
        ),
        (
            RunConfig,
            {**RUN, "train": {**RUN["train"], "precision": "bf32"}},  # as near to the one as to the other
            "x: train.precision: not a value of this key | seen: bf32 | allowed: fp32, bf16",
        ),
        (
            RunConfig,
            {**RUN, "train": {**RUN["train"], "precision": "b16"}},
            "x: train.precision: not a value of this key | seen: b16 | allowed: fp32, bf16 | remedy: did you mean bf16?",
        ),
        (
            RunConfig,
            {**RUN, "train": {**RUN["train"], "output_dir": None}},
            "x: train.output_dir is empty | seen: nothing (null) | allowed: text | remedy: write one behind it: train.output_dir=VALUE",
        ),
        (
            RunConfig,
            {**RUN, "train": {**RUN["train"], "seed": 2**63}},
            "x: train.seed: not a value of this key | seen: 9223372036854775808 | allowed: a whole number, at least 0,"
            " at most 9223372036854775807 | remedy: for example train.seed=0, the default",
        ),
        (
            SimulateConfig,
            {"views": {"audio.noisy": {"steps": [{"effect": "noise", "snr_db": [1]}]}}},
            "x: views.audio.noisy.steps.0.snr_db: not a value of this key (and 1 more) | seen: [1] | allowed: a list of 2 numbers"
            " | remedy: for example views.audio.noisy.steps.0.snr_db=[-5.0, 20.0], the default",
        ),
        (
            SimulateConfig,
            {"views": {"audio.noisy": {"steps": [{"effect": "echo"}]}}},
            "x: views.audio.noisy.steps.0: not a value of this key (and 1 more) | seen: echo"
            " | allowed: a mapping with effect: noise, speakers, room, band_limit, gap",
        ),
        (
            SimulateConfig,
            {"edit": {"operations": {"dad": ["x"]}}},
            "x: edit.operations holds no such key | seen: dad"
            " | allowed: a mapping of any of add, remove, replace, inpaint, super_resolution to lists of texts, at least 1",
        ),
        (
            FarmConfig,
            {"manifest": "m", "output_dir": "o", "tokenizers": {"audio": {"name": "codec", "options": {"levels": [3]}}}},
            "x: tokenizers.audio.options.levels: not a value of this key (and 3 more) | seen: [3]"
            " | allowed: text or a whole number or a number or true or false",
        ),
        (
            CodecConfig,
            {"data": {"pack": "p"}, "output_dir": "o", "train": {"precision": "fp8"}},
            "x: train.precision: not a value of this key | seen: fp8 | allowed: bf16, fp32 | remedy: for example train.precision=bf16",
        ),
        (
            ClusterConfig,
            {"environment": {"variables": {"NOT OK": "1"}}},
            "x: environment.variables holds no such key | seen: NOT OK | allowed: a mapping of text, of the form",
        ),
    ],
)
def test_the_words(kind: type[Section], tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(kind, tree, source="x")
    assert str(caught.value).startswith(message)


def test_a_password_in_a_wrong_value_is_not_shown() -> None:
    with pytest.raises(UserError) as caught:
        validate(ClusterConfig, {"kind": "https://me:hush@host"}, source="x")
    assert "hush" not in str(caught.value)
