"""The checkpoint writer: host memory that CUDA was told of is given back before it is freed; which folders are removed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from uniaudio.pretrain import checkpoint, checkpoint_writer
from uniaudio.pretrain.checkpoint import MANIFEST, published
from uniaudio.pretrain.checkpoint_writer import CheckpointWriter
from uniaudio.pretrain.engine import Engine
from uniaudio.pretrain.parallel.layout import Layout


class Cudart:
    """Registers addresses once, like CUDA: a second registration of one is an error."""

    def __init__(self) -> None:
        self.registered: set[int] = set()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        fault = 712 if address in self.registered else 0
        self.registered.add(address)
        return fault

    def cudaHostUnregister(self, address: int) -> int:
        self.registered.remove(address)
        return 0


def test_closing_gives_the_pinned_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = Cudart()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    entries = [("weight", torch.float32, (4, 2)), ("bias", torch.bfloat16, (3,))]
    writer = object.__new__(CheckpointWriter)  # without an engine: only its memory and its thread matter here
    writer._thread = ThreadPoolExecutor(1)
    writer._files = writer._thread.submit(lambda: {"tag": [checkpoint_writer._host_file("file", entries, torch.device("cuda"))]})
    file = writer._files.result()["tag"][0]
    assert cudart.registered == {file.tensors["weight"].data_ptr()} and file.tensors["bias"].shape == (3,)
    writer.close()
    assert not cudart.registered


def test_copies_that_a_user_keeps_are_neither_checkpoints_nor_removed(tmp_path: Path) -> None:
    for name in ("step-00000001", "step-00000002", "step-00000003", "step-00000001-good", "step-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text("{}")
    assert [path.name for path in published(tmp_path)] == ["step-00000001", "step-00000002", "step-00000003"]
    checkpoint_writer._prune(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001-good", "step-00000002", "step-00000003", "step-best"]


def test_later_ones_that_a_resume_went_behind_do_not_count(tmp_path: Path) -> None:
    for name in ("step-00000003", "step-00000005", "step-00000006"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text("{}")
    checkpoint_writer._prune(tmp_path, 1, 0, 5)
    assert [path.name for path in published(tmp_path)] == ["step-00000005", "step-00000006"], "5 was just written; 6 is damaged"


def test_a_removal_that_is_cut_off_leaves_what_the_next_start_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("step-00000001", "step-00000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text("{}")
    monkeypatch.setattr(checkpoint_writer.shutil, "rmtree", lambda path: None)
    checkpoint_writer._prune(tmp_path, 1, 0, 2)
    assert [path.name for path in tmp_path.glob(".step-*.tmp")] == [".step-00000001.old.tmp"]
    assert [path.name for path in published(tmp_path)] == ["step-00000002"]


def test_a_rank_that_a_checkpoint_did_not_know_draws_by_any_seed(tmp_path):
    drawn = []
    for rank, seed in ((1, 2**63 - 1), (2, 2**63 - 1), (1, 7)):
        engine = cast(Engine, SimpleNamespace(layout=Layout(rank=rank, world_size=4)))
        checkpoint._restore_rng(tmp_path, {"files": {}, "config": {"train": {"seed": seed}}, "step": 3}, engine)
        drawn.append(torch.rand(1).item())
    assert drawn[0] != drawn[1]
    torch.manual_seed((7 << 32) + (3 << 12) + 1)
    assert drawn[2] == torch.rand(1).item()
