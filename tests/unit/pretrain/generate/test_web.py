"""`uniaudio web` without Gradio is one clear line; every input has a label. The page itself: tests/integration/test_web.py."""

import sys
from dataclasses import fields
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from tiny_requests import CONFIG, VOCABULARY, tiny_model

from uniaudio.configs.data import DataConfig
from uniaudio.configs.run import RunConfig
from uniaudio.configs.train import TrainConfig
from uniaudio.errors import MissingDependency, UserError
from uniaudio.pretrain.generate import web as web_module
from uniaudio.pretrain.generate.api import Generator
from uniaudio.pretrain.generate.inputs import Inputs
from uniaudio.pretrain.generate.web import LABELS, launch, make_page, web


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    fault = CliRunner().invoke(web, ["--checkpoint", "nowhere"]).exception
    assert isinstance(fault, MissingDependency)
    assert "pip install 'uniaudio[web]'" in str(fault)


def test_a_checkpoint_that_also_recognises_has_a_page_of_the_tasks_that_make_audio(monkeypatch):
    gradio = MagicMock()
    monkeypatch.setattr(web_module, "_gradio", lambda: gradio)
    run = RunConfig(
        model=CONFIG, data=DataConfig(shards="nowhere", tasks=("asr", "tts", "sound")), train=TrainConfig(output_dir="nowhere", steps=1)
    )
    make_page(Generator(tiny_model(), run, VOCABULARY, {}))
    assert [call.args[0] for call in gradio.Tab.call_args_list] == ["tts", "sound"]


def test_every_input_has_a_label():
    assert set(LABELS) == {field.name for field in fields(Inputs)}


def test_a_taken_port_is_told():
    class Page:
        def launch(self, **options: object) -> None:
            raise OSError("Cannot find empty port")

    with pytest.raises(UserError, match=r"the port is taken \| seen: 7860"):
        launch(Page(), 7860)
