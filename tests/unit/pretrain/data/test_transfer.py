"""Batches survive the crossing from a loader process; zeros that every process has do not cross."""

from dataclasses import replace

import torch

from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.states import StatesPool
from uniaudio.pretrain.data.transfer import pack, unpack


def make_batch(seed: int, states: torch.Tensor) -> Batch:
    random = torch.Generator().manual_seed(seed)

    def integers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(0, 100, shape, generator=random).to(dtype)

    i32 = torch.int32
    codes, mask = integers(2, 7, 3, dtype=torch.int64), integers(2, 7, 3, dtype=torch.int8)
    rows = (integers(2, 5, dtype=i32), integers(2, 5, dtype=i32), integers(2, 7, dtype=i32))
    return Batch(codes, mask, *rows, states, integers(2, 4, dtype=i32), integers(2, 5, dtype=i32))


def test_unpack_undoes_pack_and_shares_the_zeros() -> None:
    pool = StatesPool(2, 4, 6)
    places = torch.tensor([[3, 5, -1, -1], [-1, 2, -1, 6]], dtype=torch.int32)
    own = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)) * (places >= 0)[..., None]
    batches = [make_batch(0, pool.none), replace(make_batch(1, own), text_positions_BS=places)]
    packed = pack(batches, pool, skipped=3)
    for _ in range(3):
        back = unpack(packed, pool)
        for batch, copy in zip(batches, back, strict=True):
            for tensor, other in zip(batch.as_tuple(), copy.as_tuple(), strict=True):
                assert torch.equal(tensor, other) and tensor.dtype == other.dtype and other.is_contiguous()
        assert back[0].text_states_BSC is pool.none and packed.skipped == 3
    bare = pack([batches[0], replace(batches[1], text_states_BSC=pool.none)], pool)
    assert packed.block.numel() == bare.block.numel() + 128, "four states of six floats cross"


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    pool = StatesPool(1, 4, 2)
    array, used = pool.take()
    array[0, :3], used[0] = 7, 3
    address, kept = array.ctypes.data, torch.from_numpy(array)[0, 1:]
    del array
    other, _ = pool.take()
    assert other.ctypes.data != address, "a view of it lives"
    assert kept.sum() == 28
    del kept
    again, used = pool.take()
    assert again.ctypes.data == address and not again.any() and used == [0]
