"""loss: chunked projection + cross-entropy against float64, masks, padding, a vocabulary-parallel group, errors."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from uniaudio.kernels.loss import linear_cross_entropy, reference
from uniaudio.kernels.loss.places import counted_places

# codes, width, rows of the padded vocabulary, valid rows, share of counted codes
SHAPES = [(1, 16, 16, 1, 1.0), (40, 24, 32, 29, 0.5), (75, 16, 2304, 2101, 1.0), (9, 32, 64, 64, 0.0)]


def naive(hidden, weight, targets, mask, num_valid) -> torch.Tensor:
    logits = (hidden @ weight.T)[:, :num_valid]
    picked = logits.gather(1, targets.clamp(0, num_valid - 1)[:, None])[:, 0]
    return (logits.logsumexp(1) - picked) * mask


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    from uniaudio.kernels.loss import triton_kernels

    monkeypatch.setattr(reference, "CODES_A_CHUNK", 16)
    monkeypatch.setattr(triton_kernels, "CODES_A_CHUNK", 16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_and_gradients(shape, place, small_chunks, poisoned, outputs_and_gradients, assert_as_good) -> None:
    codes, width, rows, num_valid, share = shape
    hidden, weight = place.randn(codes, width), place.randn(rows, width, scale=width**-0.5)
    targets = place.randint(0, num_valid, (codes,))
    mask = (torch.rand(codes, generator=place.generator) < share).to(place.device, torch.int8)
    targets = torch.where(mask.bool(), targets, 10**6)  # masked targets may hold anything

    def run(backend):
        return lambda h, w: linear_cross_entropy(h, w, targets, mask, num_valid=num_valid, backend=backend)

    functions = [run("triton"), run("torch"), lambda h, w: naive(h, w, targets, mask, num_valid)]
    grad = [torch.randn(codes, generator=place.generator).to(place.device)]
    runs = [
        outputs_and_gradients(f, [hidden, weight], grad, dtype) for f, dtype in zip(functions, (place.dtype, place.dtype, torch.float64))
    ]
    assert runs[0][0].dtype == torch.float32
    for name, *triple in zip(("losses", "hidden", "weight"), *runs):
        assert_as_good(*triple, name)
    assert not runs[0][0][mask == 0].any()
    assert not runs[0][2][num_valid:].any()


def test_a_known_count_changes_nothing(place) -> None:
    hidden, weight = place.randn(37, 24), place.randn(60, 24)
    targets, mask = place.randint(0, 53, (37,)), place.randint(0, 2, (37,), torch.int8)
    results = [linear_cross_entropy(hidden, weight, targets, mask, num_valid=53, backend="triton", count=count)
               for count in (None, int(mask.sum()))]  # fmt: skip
    assert torch.equal(*results)
    for values in (mask, mask * 0, mask * 0 + 1):
        assert torch.equal(counted_places(values, int(values.sum())), values.nonzero().squeeze(1))


@pytest.mark.parametrize("chunks", [0, 1, 3, 9])
def test_kept_logits_give_the_same_bits_once_and_again(place, small_chunks, monkeypatch, chunks) -> None:
    from uniaudio.kernels.loss import triton_kernels

    hidden, weight = place.randn(75, 24).requires_grad_(), place.randn(64, 24).requires_grad_()
    targets, mask = place.randint(0, 53, (75,)), torch.ones(75, dtype=torch.int8, device=place.device)

    def gradients(room: int) -> list[tuple[torch.Tensor, ...]]:
        monkeypatch.setattr(triton_kernels, "KEPT_BYTES", room)
        losses = linear_cross_entropy(hidden, weight, targets, mask, num_valid=53, backend="triton").sum()
        return [torch.autograd.grad(losses, [hidden, weight], retain_graph=True) for _ in range(2)]

    none, *others = *gradients(0), *gradients(chunks * 16 * 64 * place.dtype.itemsize)
    for other in others:
        assert all(map(torch.equal, none, other))


def test_without_gradients_no_logits_are_kept(place, monkeypatch) -> None:
    from uniaudio.kernels.loss import triton_kernels

    told, statistics = [], triton_kernels.statistics
    monkeypatch.setattr(triton_kernels, "statistics", lambda *arguments: told.append(statistics(*arguments)) or told[-1])
    hidden, weight = place.randn(5, 16).requires_grad_(), place.randn(32, 16)
    targets, mask = place.randint(0, 32, (5,)), torch.ones(5, dtype=torch.int8, device=place.device)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            linear_cross_entropy(hidden, weight, targets, mask, num_valid=32, backend="triton")
    assert [len(kept) for _, kept in told] == [1, 0]


def test_large_logits_do_not_overflow(place) -> None:
    hidden, weight = place.randn(8, 16, scale=30.0), place.randn(32, 16, scale=10.0)
    losses = linear_cross_entropy(
        hidden, weight, place.randint(0, 32, (8,)), torch.ones(8, dtype=torch.int8, device=place.device), num_valid=32, backend="triton"
    )
    assert torch.isfinite(losses).all()


def test_impossible_target_is_nan(place) -> None:
    mask = torch.ones(3, dtype=torch.bool, device=place.device)
    targets = torch.tensor([3, 30, -1], device=place.device)
    losses = linear_cross_entropy(place.randn(3, 16), place.randn(32, 16), targets, mask, num_valid=30, backend="triton")
    assert torch.isnan(losses).tolist() == [False, True, True]


def _parallel_rank(rank: int, world: int, store: str, backend: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(3)
    whole = torch.randn(2 * 24, 16, generator=generator)
    hidden = torch.randn(40, 16, generator=generator).requires_grad_()
    targets = torch.randint(0, 43, (40,), generator=generator)
    mask = torch.randint(0, 2, (40,), generator=generator)
    upstream = torch.randn(40, generator=generator)
    weight = whole[24 * rank : 24 * (rank + 1)].clone().requires_grad_()
    losses = linear_cross_entropy(hidden, weight, targets, mask, num_valid=43, backend=backend, group=dist.group.WORLD)
    losses.backward(upstream)
    one_hidden, one_weight = hidden.detach().double().requires_grad_(), whole.double().requires_grad_()
    expected = naive(one_hidden, one_weight, targets, mask, 43)
    expected.backward(upstream.double())
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), one_hidden.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), one_weight.grad[24 * rank : 24 * (rank + 1)], rtol=1e-5, atol=1e-5)
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo processes on the CPU, Triton in its interpreter")
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_vocabulary_parallel_is_the_whole_vocabulary(backend, tmp_path) -> None:
    mp.spawn(_parallel_rank, args=(2, str(tmp_path / "store"), backend), nprocs=2)


GOOD = {
    "hidden_XD": torch.zeros(4, 8),
    "weight_VD": torch.zeros(16, 8),
    "targets_X": torch.zeros(4, dtype=torch.int64),
    "mask_X": torch.ones(4, dtype=torch.int8),
    "num_valid": 13,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_XD": torch.zeros(2, 2, 8)}, "shape of hidden_XD"),
        ({"hidden_XD": torch.zeros(8, 4).T}, "stride of hidden_XD"),
        ({"weight_VD": torch.zeros(16, 7)}, "shape of weight_VD"),
        ({"weight_VD": torch.zeros(16, 8, dtype=torch.bfloat16)}, "dtype of weight_VD"),
        ({"targets_X": torch.zeros(3, dtype=torch.int64)}, "shape of targets_X"),
        ({"targets_X": torch.zeros(4, dtype=torch.int32)}, "dtype of targets_X"),
        ({"mask_X": torch.ones(4)}, "dtype of mask_X"),
        ({"mask_X": torch.ones(4, dtype=torch.int8, device="meta")}, "device of mask_X"),
        ({"num_valid": 17}, "num_valid"),
        ({"num_valid": 0}, "num_valid"),
    ],
)
def test_bad_input_is_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**GOOD, **change}, backend="torch")
