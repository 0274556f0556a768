"""Batches survive the crossing from a loader process; zeros that every process has do not cross."""

import torch

from uniaudio.pretrain.data.batch import Batch
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
    zeros, own = torch.zeros(2, 4, 6), torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    batches = [make_batch(0, zeros), make_batch(1, own)]
    packed = pack(batches, zeros)
    back = unpack(packed, zeros)
    for batch, copy in zip(batches, back, strict=True):
        for tensor, other in zip(batch.as_tuple(), copy.as_tuple(), strict=True):
            assert torch.equal(tensor, other) and tensor.dtype == other.dtype and other.is_contiguous()
    assert back[0].text_states_BSC is zeros and back[1].text_states_BSC is not own
    assert packed.block.numel() < 2 * sum(tensor.nbytes for tensor in batches[1].as_tuple()) + 16 * 64 - zeros.nbytes
