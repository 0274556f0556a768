"""varlen_attention: documents packed in a row against float64 document by document; prefixes; gradients; errors."""

import sys
from itertools import pairwise

import pytest
import torch

from uniaudio.kernels.varlen_attention import peers, reference, varlen_attention

# frames of the row, first frames of its documents, lengths of their bidirectional prefixes, heads, head width
ROWS = {
    "one document": (70, [[0]], [[0]], 2, 32),
    "documents shorter than a tile": (67, [[0, 3, 4, 20, 67], [0, 31, 32, 33, 66]], None, 1, 64),
    "documents longer than a tile": (150, [[0, 75, 150], [0, 10, 149]], None, 2, 40),
    "prefixes": (150, [[0, 75, 80, 150], [0, 10, 149, 150]], [[40, 3, 70, 0], [10, 139, 1, 0]], 1, 32),
    "prefix longer than its document": (40, [[0, 20]], [[90, 1]], 1, 96),
    "head of two parts": (90, [[0, 41, 90]], [[7, 0, 0]], 2, 48),
    "one frame": (1, [[0, 1]], None, 3, 16),
    "widest head": (33, [[0, 9]], [[4, 5]], 1, 256),
}


def naive(qkv_BTN3H: torch.Tensor, starts, prefixes) -> torch.Tensor:
    """The definition, query by query."""
    batch, frames, heads, _, head_dim = qkv_BTN3H.shape
    outputs = []
    for b in range(batch):
        query, key, value = qkv_BTN3H[b].unbind(2)
        bounds = [*(start for start in starts[b] if start < frames), frames]
        for index, (first, end) in enumerate(pairwise(bounds)):
            prefix_end = min(first + (prefixes[b][index] if prefixes else 0), end)
            for t in range(first, end):
                seen = slice(first, max(t + 1, prefix_end))
                scores = torch.einsum("nh,snh->ns", query[t], key[seen]) / head_dim**0.5
                outputs.append(torch.einsum("ns,snh->nh", scores.softmax(-1), value[seen]))
    return torch.stack(outputs).reshape(batch, frames, heads * head_dim)


def repeated(qkv_BTGRH: torch.Tensor) -> torch.Tensor:
    """Shared keys and values written out: (B, T, G, R + 2, H) -> (B, T, N, 3, H)."""
    shared = qkv_BTGRH.shape[3] - 2
    queries, *rest = qkv_BTGRH.split((shared, 1, 1), dim=3)
    return torch.stack((queries, *(part.expand_as(queries) for part in rest)), dim=4).flatten(2, 3)


def boundary_tensors(starts, prefixes, device="cpu"):
    return (
        torch.tensor(starts, dtype=torch.int32, device=device),
        None if prefixes is None else torch.tensor(prefixes, dtype=torch.int32, device=device),
    )


@pytest.mark.parametrize("queries_a_call", [16, 1024])
@pytest.mark.parametrize("case", ROWS)
def test_reference_is_the_definition(case, queries_a_call, monkeypatch) -> None:
    monkeypatch.setattr(reference, "QUERIES_A_CALL", queries_a_call)
    frames, starts, prefixes, heads, head_dim = ROWS[case]
    qkv = torch.randn(len(starts), frames, heads, 3, head_dim, dtype=torch.float64)
    out = varlen_attention(qkv, *boundary_tensors(starts, prefixes), backend="torch")
    torch.testing.assert_close(out, naive(qkv, starts, prefixes))


@pytest.mark.parametrize("case", ROWS)
def test_output_and_gradient(case, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    frames, starts, prefixes, heads, head_dim = ROWS[case]
    bounds = boundary_tensors(starts, prefixes, place.device)
    qkv = place.randn(len(starts), frames, heads, 3, head_dim)
    grad = place.randn(len(starts), frames, heads * head_dim)
    truth = outputs_and_gradients(lambda x: naive(x, starts, prefixes), [qkv], [grad], torch.float64)
    plain = outputs_and_gradients(lambda x: varlen_attention(x, *bounds, backend="torch"), [qkv], [grad], place.dtype)
    result = outputs_and_gradients(lambda x: varlen_attention(x, *bounds, backend="triton"), [qkv], [grad], place.dtype)
    for name, *tensors in zip(("output", "gradient"), result, plain, truth):
        assert_as_good(*tensors, name)


@pytest.mark.parametrize(("groups", "shared", "head_dim"), [(2, 2, 16), (1, 3, 48)])
def test_queries_that_share_a_key(groups, shared, head_dim, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    starts, prefixes = [[0, 9, 40]], [[4, 12, 0]]
    bounds = boundary_tensors(starts, prefixes, place.device)
    qkv = place.randn(1, 40, groups, shared + 2, head_dim)
    grad = place.randn(1, 40, groups * shared * head_dim)
    truth = outputs_and_gradients(lambda x: naive(repeated(x), starts, prefixes), [qkv], [grad], torch.float64)
    plain = outputs_and_gradients(lambda x: varlen_attention(x, *bounds, backend="torch"), [qkv], [grad], place.dtype)
    result = outputs_and_gradients(lambda x: varlen_attention(x, *bounds, backend="triton"), [qkv], [grad], place.dtype)
    for name, *tensors in zip(("output", "gradient"), result, plain, truth):
        assert_as_good(*tensors, name)


@pytest.mark.parametrize(
    ("rows", "step", "more"),
    [
        (16, 16, {}),
        (32, 16, {"bulk": True}),
        (16, 32, {"bulk": True, "heads_together": 2, "heads": 3}),
        (16, 16, {"bulk": True, "head_dim": 48, "stages": 2}),
    ],
)
def test_every_launch_gives_the_same(rows, step, more, place, poisoned, assert_as_good) -> None:
    from uniaudio.kernels.varlen_attention.backward import backward
    from uniaudio.kernels.varlen_attention.boundaries import document_spans
    from uniaudio.kernels.varlen_attention.forward import forward
    from uniaudio.kernels.varlen_attention.tiles import Launch, Plan

    more = {"heads": 1, "head_dim": 32, "stages": 2 if place.device == "cuda" else 1, **more}
    heads, head_dim, stages = more.pop("heads"), more.pop("head_dim"), more.pop("stages")
    launch = Launch(rows, step, 1, stages, **more)
    starts, prefixes = [[0, 5, 50, 63]], [[0, 23, 2, 63]]
    qkv = place.randn(1, 63, heads, 3, head_dim)
    grad = place.randn(1, 63, heads * head_dim)
    bounds = boundary_tensors(starts, prefixes, place.device)
    spans = document_spans(*bounds, 63)
    plan = Plan(launch, launch, launch)
    out, sums = forward(qkv, spans, launch)
    leaf, plain = qkv.double().requires_grad_(), qkv.clone().requires_grad_()
    truth_out, plain_out = naive(leaf, starts, prefixes), varlen_attention(plain, *bounds, backend="torch")
    truth_out.backward(grad.double())
    plain_out.backward(grad)
    assert_as_good(out, plain_out.detach(), truth_out.detach(), "output")
    assert_as_good(backward(qkv, out, sums, grad, spans, plan), plain.grad, leaf.grad, "gradient")


@pytest.mark.parametrize(
    ("head_dim", "parts"),
    [
        (8, (16, 16, False)),
        (64, (64, 16, False)),
        (80, (64, 16, True)),
        (96, (64, 32, True)),
        (104, (128, 16, False)),
        (192, (256, 16, False)),
    ],
)
def test_head_parts(head_dim, parts) -> None:
    from uniaudio.kernels.varlen_attention.tiles import head_parts

    assert head_parts(head_dim) == parts


@pytest.mark.parametrize(("head_dim", "fits"), [(128, True), (96, True), (40, False), (104, False)])
def test_a_bulk_copy_never_reads_the_neighbours_columns(head_dim, fits) -> None:
    from uniaudio.kernels.varlen_attention.tiles import Launch, bulk_fits

    assert bulk_fits(Launch(64, 64, 4, 2, bulk=True), head_dim) is fits


def test_unpipelined_walk_over_a_split_head_is_refused() -> None:
    from uniaudio.kernels.varlen_attention.tiles import Launch, sizes

    with pytest.raises(ValueError, match="stages of a split head"):
        sizes(torch.zeros(1, 8, 1, 3, 96, dtype=torch.float16), Launch(64, 64, 4, 1), heads=1)


@pytest.mark.parametrize("case", ROWS)
def test_spans_match_the_reference(case, place) -> None:
    from uniaudio.kernels.varlen_attention.boundaries import document_spans

    frames, starts, prefixes, _, _ = ROWS[case]
    bounds = boundary_tensors(starts, prefixes, place.device)
    spans = document_spans(*bounds, frames)
    first, end = reference.row_limits(*bounds, frames)
    assert torch.equal(spans.key_first, first)
    assert torch.equal(spans.key_end, end)
    position = torch.arange(frames, device=place.device)
    seen = (position >= first[..., None]) & (position < end[..., None])
    seen_by_key = (position >= spans.query_first[..., None]) & (position < spans.query_end[..., None])
    assert torch.equal(seen, seen_by_key.transpose(1, 2))


def test_more_documents_than_a_block_of_boundaries(place) -> None:
    from uniaudio.kernels.varlen_attention.boundaries import document_spans

    starts = torch.arange(0, 400, 2, device=place.device)[None]
    prefixes = torch.full_like(starts, 2)
    spans = document_spans(starts, prefixes, 401)
    first, end = reference.row_limits(starts, prefixes, 401)
    assert torch.equal(spans.key_first, first)
    assert torch.equal(spans.key_end, end)


def test_documents_do_not_see_each_other(place) -> None:
    starts, _ = boundary_tensors([[0, 20, 45]], None, place.device)
    qkv = place.randn(1, 60, 1, 3, 32)
    before = varlen_attention(qkv, starts, backend="triton")
    qkv[:, 20:45] = place.randn(1, 25, 1, 3, 32)
    after = varlen_attention(qkv, starts, backend="triton")
    for untouched in (slice(0, 20), slice(45, 60)):
        torch.testing.assert_close(after[:, untouched], before[:, untouched], rtol=0, atol=0)


GOOD = {"qkv_BTN3H": torch.zeros(1, 8, 2, 3, 16), "document_starts_BD": torch.tensor([[0, 4, 8]]), "prefix_lengths_BD": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv_BTN3H": torch.zeros(1, 8, 2, 2, 16)}, "shape of qkv_BTN3H"),
        ({"qkv_BTN3H": torch.zeros(1, 8, 2, 3, 15)}, "head dimension"),
        ({"qkv_BTN3H": torch.zeros(1, 8, 2, 3, 264)}, "head dimension"),
        ({"qkv_BTN3H": torch.zeros(1, 2, 8, 3, 16).transpose(1, 2)}, "stride of qkv_BTN3H"),
        ({"document_starts_BD": torch.tensor([[0], [4]])}, "shape of document_starts_BD"),
        ({"document_starts_BD": torch.tensor([[0.0, 4.0]])}, "dtype of document_starts_BD"),
        ({"document_starts_BD": torch.tensor([[0, 4]], device="meta")}, "device of document_starts_BD"),
        ({"document_starts_BD": torch.tensor([[1, 4]])}, "first document"),
        ({"document_starts_BD": torch.tensor([[0, 5, 4]])}, "document_starts_BD of row 0"),
        ({"document_starts_BD": torch.tensor([[0, 4, 4]])}, "document_starts_BD of row 0"),
        ({"document_starts_BD": torch.tensor([[0, 9]])}, "document_starts_BD of row 0"),
        ({"prefix_lengths_BD": torch.tensor([[1, 2]])}, "shape of prefix_lengths_BD"),
        ({"prefix_lengths_BD": torch.tensor([[1, -2, 0]])}, "prefix_lengths_BD"),
    ],
)
def test_bad_input_is_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        varlen_attention(**{**GOOD, **change}, backend="torch")


def test_offsets_of_documents_in_all_rows() -> None:
    starts = torch.tensor([[0, 3, 8], [0, 8, 8]])
    assert peers.offsets(starts, 8).tolist() == [0, 3, 8, 8, 16, 16, 16]


def test_packed_attention_hands_on_each_document() -> None:
    def attend(queries, keys, values, offsets, longest):
        assert longest >= int(offsets.diff().max())
        parts = []
        for first, end in pairwise(offsets.tolist()):
            query, key, value = (tensor[first:end].transpose(0, 1) for tensor in (queries, keys, values))
            parts.append(
                torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(0, 1)
            )
        return torch.cat(parts)

    starts, _ = boundary_tensors([[0, 7, 20], [0, 20, 20]], None)
    qkv = torch.randn(2, 20, 2, 4, 16, dtype=torch.float64)
    out = peers.packed_attention(qkv, starts, attend)
    torch.testing.assert_close(out, varlen_attention(qkv, starts, backend="torch"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("backend", "starts"), [("torch_varlen", [[0, 75, 150], [0, 10, 149]]), ("cudnn", [[0], [0]])])
@pytest.mark.parametrize("shared", [1, 2])
def test_other_libraries_agree(backend, starts, shared, outputs_and_gradients, assert_as_good) -> None:
    bounds, _ = boundary_tensors(starts, None, "cuda")
    qkv = torch.randn(2, 150, 2, shared + 2, 64, device="cuda", dtype=torch.bfloat16)
    grad = torch.randn(2, 150, 128 * shared, device="cuda", dtype=torch.bfloat16)
    truth = outputs_and_gradients(lambda x: naive(repeated(x), starts, None), [qkv], [grad], torch.float64)
    plain = outputs_and_gradients(lambda x: varlen_attention(x, bounds, backend="torch"), [qkv], [grad], torch.bfloat16)
    result = outputs_and_gradients(lambda x: varlen_attention(x, bounds, backend=backend), [qkv], [grad], torch.bfloat16)
    for name, *tensors in zip(("output", "gradient"), result, plain, truth):
        assert_as_good(*tensors, name)


HALF = torch.zeros(1, 8, 2, 3, 16, dtype=torch.bfloat16)


@pytest.mark.parametrize("backend", peers.PEERS)
@pytest.mark.parametrize(
    ("qkv", "prefixes", "message"),
    [
        (HALF, torch.tensor([[1, 0, 0]]), "bidirectional prefixes"),
        (HALF.float(), None, "dtype of qkv_BTN3H with backend"),
        (HALF, None, "needs CUDA tensors"),
    ],
)
def test_what_another_library_cannot_do_is_named(backend, qkv, prefixes, message) -> None:
    with pytest.raises(ValueError, match=message):
        varlen_attention(qkv, GOOD["document_starts_BD"], prefixes, backend=backend)


def test_cudnn_takes_one_document_a_row() -> None:
    with pytest.raises(ValueError, match="documents a row with backend cudnn | seen: 3"):
        peers.RUN["cudnn"](HALF, GOOD["document_starts_BD"])


@pytest.mark.parametrize(("backend", "module"), [("torch_varlen", "torch.nn.attention.varlen"), ("flash_attn", "flash_attn")])
def test_missing_library_is_named(backend, module, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"backend {backend} .* allowed"):
        peers.RUN[backend](HALF, GOOD["document_starts_BD"])


def test_unknown_backend_names_all() -> None:
    with pytest.raises(ValueError, match="unknown backend .* triton, torch_varlen, cudnn, flash_attn"):
        varlen_attention(**GOOD, backend="fastest")
