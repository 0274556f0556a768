"""decode_attention: against float64 over every length, the caches that it leaves, independence of the rows beside, and its errors."""

import pytest
import torch

from uniaudio.kernels.decode_attention import decode_attention

# B, N, S, H: the local cache of three codes, one chunk, the edges of chunks, the released head width
SHAPES = [(3, 2, 3, 32), (2, 3, 40, 64), (4, 2, 129, 96), (5, 1, 300, 40), (1, 2, 257, 128)]


def inputs(shape, place) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, heads, slots, head_dim = shape
    edges = torch.tensor([slots - 1, 0, slots // 2, min(127, slots - 1), min(128, slots - 1)])[:rows]
    cache = [place.randn(rows, heads, slots, head_dim) for _ in range(2)]
    return place.randn(rows, heads, 3, head_dim), *cache, edges.to(place.device, torch.int32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_caches(shape, place, poisoned, assert_as_good) -> None:
    qkv, keys, values, lengths = inputs(shape, place)
    used = torch.arange(shape[2], device=place.device) < lengths[:, None]
    keys, values = (cache.masked_fill(~used[:, None, :, None], float("nan")) for cache in (keys, values))  # unfilled slots are never read
    truth_caches = [cache.nan_to_num().double() for cache in (keys, values)]
    truth = decode_attention(qkv.double(), *truth_caches, lengths, backend="torch")
    plain = decode_attention(qkv, keys.nan_to_num(), values.nan_to_num(), lengths, backend="torch")
    result = decode_attention(qkv, keys, values, lengths, backend="triton")
    assert_as_good(result, plain, truth, "output")
    for cache, expected in zip((keys, values), truth_caches):
        assert torch.equal(cache.nan_to_num(), expected.to(cache.dtype))


def test_reference_is_the_definition() -> None:
    qkv, keys, values = torch.randn(2, 3, 3, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    lengths = torch.tensor([4, 8])
    out = decode_attention(qkv, keys, values, lengths, backend="torch").view(2, 3, 8)
    for row, length in enumerate([4, 8]):
        for head in range(3):
            scores = keys[row, head, : length + 1] @ qkv[row, head, 0] / 8**0.5
            torch.testing.assert_close(out[row, head], scores.softmax(0) @ values[row, head, : length + 1])
            assert torch.equal(keys[row, head, length], qkv[row, head, 1])


def test_a_row_does_not_depend_on_the_rows_beside_it(place) -> None:
    qkv, keys, values, lengths = inputs((4, 2, 140, 32), place)
    together = decode_attention(qkv, keys.clone(), values.clone(), lengths, backend="triton")
    for row in range(4):
        part = slice(row, row + 1)
        alone = decode_attention(qkv[part], keys[part].clone(), values[part].clone(), lengths[part], backend="triton")
        assert torch.equal(alone[0], together[row])


def test_no_rows(place) -> None:
    cache = place.randn(0, 2, 4, 16)
    lengths = torch.zeros(0, dtype=torch.int64, device=place.device)
    assert decode_attention(place.randn(0, 2, 3, 16), cache, cache.clone(), lengths, backend="triton").shape == (0, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv_BN3H": torch.zeros(2, 3, 2, 16)}, "shape of qkv_BN3H"),
        ({"qkv_BN3H": torch.zeros(2, 3, 3, 12)}, "head dimension"),
        ({"keys_BNSH": torch.zeros(2, 3, 5, 32)}, "shape of keys_BNSH"),
        ({"values_BNSH": torch.zeros(2, 3, 4, 16)}, "shape of values_BNSH"),
        ({"lengths_B": torch.zeros(3, dtype=torch.int32)}, "shape of lengths_B"),
        ({"lengths_B": torch.zeros(2)}, "dtype of lengths_B"),
        ({"keys_BNSH": torch.zeros(2, 3, 0, 16), "values_BNSH": torch.zeros(2, 3, 0, 16)}, "slots of the cache"),
        ({"keys_BNSH": torch.zeros(2, 5, 3, 16).transpose(1, 2)}, "stride of keys_BNSH"),
        ({"values_BNSH": torch.zeros(2, 3, 5, 16, dtype=torch.float16)}, "dtype of values_BNSH"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_bad_input_is_named(changes, message, backend) -> None:
    good = {"qkv_BN3H": torch.zeros(2, 3, 3, 16), "keys_BNSH": torch.zeros(2, 3, 5, 16), "values_BNSH": torch.zeros(2, 3, 5, 16)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = {name: tensor.to(device) for name, tensor in (good | {"lengths_B": torch.zeros(2, dtype=torch.int32)} | changes).items()}
    with pytest.raises(ValueError, match=message):
        decode_attention(**arguments, backend=backend)


def test_a_length_beyond_the_cache_is_an_index_error_on_the_torch_path() -> None:
    with pytest.raises(IndexError):
        decode_attention(torch.zeros(1, 1, 3, 8), *(torch.zeros(1, 1, 4, 8) for _ in range(2)), torch.tensor([4]), backend="torch")
