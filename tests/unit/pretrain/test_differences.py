"""What a resume says of a config that is another than the checkpoint's."""

import logging
from pathlib import Path

import pytest

from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.pretrain.checkpoint import Restored
from uniaudio.pretrain.train import _tell_differences


def told(caplog: pytest.LogCaptureFixture, *overrides: str) -> list[str]:
    before, now = (load_config(RunConfig, "demo_cpu", folder="runs", overrides=each) for each in ([], overrides))
    logging.getLogger("uniaudio").addHandler(caplog.handler)
    _tell_differences(now, Restored(4, Path("step-00000004"), {"config": before.model_dump(mode="json")}))
    logging.getLogger("uniaudio").removeHandler(caplog.handler)
    return [record.message for record in caplog.records]


def test_every_key_that_changed_is_told_with_both_values(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog) == []
    assert told(caplog, "optim.lr=0.5", "data.workers=3") == [
        "the checkpoint was made with data.workers=0; now 3",
        f"the checkpoint was made with optim.lr={load_config(RunConfig, 'demo_cpu', folder='runs').optim.lr}; now 0.5",
    ]


@pytest.mark.parametrize("override", ["data.seed=5", "data.frames_per_row=128", "data.shards_per_block=2", "data.mix.weights={tts: 0.1}"])
def test_another_order_of_the_documents_is_told_for_what_it_is(override: str, caplog: pytest.LogCaptureFixture) -> None:
    *_, last = told(caplog, override)
    assert override.partition("=")[0] in last and ": documents stand in another order now, " in last
