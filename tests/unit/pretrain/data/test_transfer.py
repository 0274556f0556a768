"""Batches and rows survive the crossing between processes; memory is used again only when it is free."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.documents import _columns
from uniaudio.pretrain.data.loader import make_loader
from uniaudio.pretrain.data.memory import BatchMemory, SharedMemory
from uniaudio.pretrain.data.transfer import pack, unpack
from uniaudio.pretrain.data.vocabulary import load_vocabulary


def make_batch(seed: int, states: torch.Tensor) -> Batch:
    random = torch.Generator().manual_seed(seed)

    def integers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(0, 100, shape, generator=random).to(dtype)

    i32 = torch.int32
    codes, mask = integers(2, 7, 3, dtype=torch.int64), integers(2, 7, 3, dtype=torch.int8)
    rows = (integers(2, 5, dtype=i32), integers(2, 5, dtype=i32), integers(2, 7, dtype=i32))
    return Batch(codes, mask, *rows, states, integers(2, 4, dtype=i32), integers(2, 5, dtype=i32))


@pytest.fixture
def memory() -> BatchMemory:
    data = DataConfig(
        shards="", tasks=("tts",), frames_per_row=16, rows_per_micro_batch=2, max_documents_per_row=5, max_text_states_per_row=4
    )
    return BatchMemory(data, ModelConfig(text_width=6))


def test_unpack_undoes_pack_and_shares_the_zeros(memory) -> None:
    places = torch.tensor([[3, 5, -1, -1], [-1, 2, -1, 6]], dtype=torch.int32)
    own = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)) * (places >= 0)[..., None]
    batches = [make_batch(0, memory.none), replace(make_batch(1, own), text_positions_BS=places)]
    packed = pack(batches, memory)
    for _ in range(3):
        back = unpack(packed, memory)
        for batch, copy in zip(batches, back, strict=True):
            for tensor, other in zip(batch.as_tuple(), copy.as_tuple(), strict=True):
                assert torch.equal(tensor, other) and tensor.dtype == other.dtype and other.is_contiguous()
        assert back[0].text_states_BSC is memory.none
    bare = pack([batches[0], replace(batches[1], text_states_BSC=memory.none)], memory)
    assert packed.block.numel() == bare.block.numel() + 128, "four states of six floats cross"


def test_memory_is_used_again_only_when_nobody_holds_it(memory) -> None:
    (slot,) = memory.take(1)
    slot.clear_states(1, 3)[:3] = 7
    address, kept = slot.block.ctypes.data, memory.batch(slot).text_states_BSC[1, 1:]
    del slot
    (other,) = memory.take(1)
    assert other.block.ctypes.data != address, "a view of it lives"
    assert kept.sum() == 7 * 2 * 6
    del kept, other
    first, second = memory.take(2)
    assert first.block.ctypes.data == address != second.block.ctypes.data
    assert not first.clear_states(1, 0).any() and memory.batch(first).text_states_BSC is memory.none


def test_shared_slots_are_copied_from_where_too_many_are_held(memory) -> None:
    shared = SharedMemory(memory, 3, held=2)
    held = []
    for round in range(5):
        number = shared.promise()
        shared.slots[number].array("codes_BTQ")[:] = round
        held.append(shared.deliver(number))
    assert [int(batch.codes_BTQ.unique()) for batch in held] == [0, 1, 2, 3, 4]
    own = [slot.block.ctypes.data for slot in shared.slots]
    assert sum(any(0 <= batch.codes_BTQ.data_ptr() - start < memory.bytes for start in own) for batch in held) == 2


def test_rows_are_pickled_whole(shards) -> None:
    data = DataConfig(shards=str(shards), tasks=("tts", "sound"), frames_per_row=400, max_text_states_per_row=24)
    loader = make_loader(data, ModelConfig(text_width=8), load_vocabulary("paper"))
    rows = loader.step_rows(0)
    for kept in (rows, replace(rows, layout=None)):
        back = pickle.loads(pickle.dumps(kept))
        assert (back.layout is None) == (kept.layout is None)
        for one, two in zip(_columns(kept), _columns(back), strict=True):
            assert one.dtype == two.dtype and np.array_equal(one.reshape(-1), two.reshape(-1))
    assert all(
        map(torch.equal, loader.assembler.batch(pickle.loads(pickle.dumps(rows))).as_tuple(), loader.assembler.batch(rows).as_tuple())
    )
    loader.close()
