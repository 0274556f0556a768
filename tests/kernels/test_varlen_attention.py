"""varlen_attention: documents packed in a row against float64 document by document; prefixes; gradients; errors."""

from itertools import pairwise

import pytest
import torch

from uniaudio.kernels.varlen_attention import reference, varlen_attention

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


@pytest.mark.parametrize(
    ("rows", "step", "more"),
    [
        (16, 16, {}),
        (32, 16, {"bulk": True}),
        (16, 32, {"bulk": True, "heads_together": 2}),
        (16, 32, {"heads_together": 3, "head_dim": 48, "stages": 2}),
        (16, 16, {"bulk": True, "head_dim": 48, "stages": 2}),
        (16, 16, {"bulk": True, "head_dim": 40}),
    ],
)
def test_every_launch_gives_the_same(rows, step, more, place, poisoned, assert_as_good) -> None:
    from uniaudio.kernels.varlen_attention.backward import backward
    from uniaudio.kernels.varlen_attention.boundaries import document_spans
    from uniaudio.kernels.varlen_attention.forward import forward
    from uniaudio.kernels.varlen_attention.tiles import Launch, Plan

    more = {"head_dim": 32, "stages": 2 if place.device == "cuda" else 1, **more}
    head_dim, stages = more.pop("head_dim"), more.pop("stages")
    launch = Launch(rows, step, 1, stages, **more)
    starts, prefixes = [[0, 5, 60, 93]], [[0, 33, 2, 93]]
    qkv = place.randn(1, 93, 3, 3, head_dim)
    grad = place.randn(1, 93, 3 * head_dim)
    bounds = boundary_tensors(starts, prefixes, place.device)
    spans = document_spans(*bounds, 93)
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


def test_unpipelined_walk_over_a_split_head_is_refused() -> None:
    from uniaudio.kernels.varlen_attention.tiles import Launch, sizes

    with pytest.raises(ValueError, match="stages of a split head"):
        sizes(torch.zeros(1, 8, 1, 3, 96, dtype=torch.float16), Launch(64, 64, 4, 1))


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
