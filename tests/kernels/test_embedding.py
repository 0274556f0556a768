"""embedding: summed and concatenated frames, positions, the deterministic gradient, errors."""

import pytest
import torch

from uniaudio.kernels.embedding import frame_embedding

# X, Q, V, E, P
SHAPES = [(1, 1, 1, 16, 1), (37, 3, 50, 24, 9), (70, 4, 3, 40, 90), (5, 2, 30, 2056, 3)]


def naive(codes_XQ, table, positions_X, position_table, mode) -> torch.Tensor:
    rows = []
    for x, codes in enumerate(codes_XQ.tolist()):
        vectors = [table[code] for code in codes]
        frame = torch.stack(vectors).sum(0) if mode == "sum" else torch.cat(vectors)
        rows.append(frame if positions_X is None else frame + position_table[positions_X[x]])
    return torch.stack(rows)


@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize("mode", ["sum", "concat"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradient(shape, mode, with_positions, place, poisoned, outputs_and_gradients, assert_as_good) -> None:
    frames, codes, rows, width, positions = shape
    ids, where = place.randint(0, rows, (frames, codes)), place.randint(0, positions, (frames,), torch.int32)
    depth = width * (codes if mode == "concat" else 1)
    tables = [place.randn(rows, width), *([place.randn(positions, depth)] if with_positions else [])]

    def arguments(leaves):
        return (ids, leaves[0], where if with_positions else None, leaves[1] if with_positions else None)

    functions = [
        lambda *leaves: frame_embedding(*arguments(leaves), mode=mode, backend="triton"),
        lambda *leaves: frame_embedding(*arguments(leaves), mode=mode, backend="torch"),
        lambda *leaves: naive(*arguments(leaves), mode),
    ]
    grad = [place.randn(frames, depth)]
    runs = [outputs_and_gradients(f, tables, grad, dtype) for f, dtype in zip(functions, (place.dtype, place.dtype, torch.float64))]
    for name, *triple in zip(("output", "table", "positions"), *runs):
        assert_as_good(*triple, name)


def test_gradient_is_deterministic_and_one_frequent_id_is_exact(place) -> None:
    codes = torch.zeros(200, 3, dtype=torch.int64, device=place.device)
    codes[7, 1] = 4
    table = place.randn(6, 16).requires_grad_()
    grad = torch.ones(200, 16, device=place.device, dtype=place.dtype)
    runs = [torch.autograd.grad(frame_embedding(codes, table, mode="sum", backend="triton"), table, grad)[0] for _ in range(2)]
    assert torch.equal(*runs)
    assert runs[0][:, 0].tolist() == pytest.approx([599, 0, 0, 0, 1, 0], rel=4e-3)


def test_id_outside_the_table_gives_nan_and_no_fault(place) -> None:
    codes = torch.tensor([[1, 2], [3, 5], [-1, 0]], device=place.device)
    table = place.randn(5, 16).requires_grad_()
    out = frame_embedding(codes, table, mode="sum", backend="triton")
    assert torch.isfinite(out[0]).all()
    assert torch.isnan(out[1:]).all()
    out = frame_embedding(codes, table, mode="concat", backend="triton")
    assert torch.isnan(out[1, 16:]).all() and torch.isnan(out[2, :16]).all() and torch.isfinite(out[0]).all()
    out.sum().backward()
    assert table.grad[:, 0].tolist() == [1, 1, 1, 1, 0]


GOOD = {
    "codes_XQ": torch.zeros(4, 2, dtype=torch.int64),
    "table_VE": torch.zeros(5, 8),
    "positions_X": torch.zeros(4, dtype=torch.int32),
    "position_table_PD": torch.zeros(3, 8),
    "mode": "sum",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes_XQ": torch.zeros(4, dtype=torch.int64)}, "shape of codes_XQ"),
        ({"codes_XQ": torch.zeros(4, 2)}, "dtype of codes_XQ"),
        ({"codes_XQ": torch.zeros(4, 2, dtype=torch.int64, device="meta")}, "device of codes_XQ"),
        ({"table_VE": torch.zeros(8, 5).T}, "stride of table_VE"),
        ({"mode": "mean"}, "mode"),
        ({"mode": "concat"}, "shape of position_table_PD"),
        ({"positions_X": None}, "positions"),
        ({"positions_X": torch.zeros(3, dtype=torch.int32)}, "shape of positions_X"),
    ],
)
def test_bad_input_is_named(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        frame_embedding(**{**GOOD, **change}, backend="torch")
