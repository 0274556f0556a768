"""`uniaudio web` without Gradio is one clear line; every input has a label. The page itself: tests/integration/test_web.py."""

import sys
from dataclasses import fields

import pytest
from click.testing import CliRunner

from uniaudio.errors import MissingDependency, UserError
from uniaudio.pretrain.generate.inputs import Inputs
from uniaudio.pretrain.generate.web import LABELS, launch, web


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    fault = CliRunner().invoke(web, ["--checkpoint", "nowhere"]).exception
    assert isinstance(fault, MissingDependency)
    assert "pip install 'uniaudio[web]'" in str(fault)


def test_every_input_has_a_label():
    assert set(LABELS) == {field.name for field in fields(Inputs)}


def test_a_taken_port_is_told():
    class Page:
        def launch(self, **options: object) -> None:
            raise OSError("Cannot find empty port")

    with pytest.raises(UserError, match=r"the port is taken \| seen: 7860"):
        launch(Page(), 7860)
