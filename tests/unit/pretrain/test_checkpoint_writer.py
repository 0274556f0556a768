"""Host memory of the checkpoint writer: what CUDA was told of is given back before it is freed."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from uniaudio.pretrain import checkpoint_writer
from uniaudio.pretrain.checkpoint_writer import CheckpointWriter


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
