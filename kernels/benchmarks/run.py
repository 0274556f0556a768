"""Checks every kernel against float32 on the GPU, then times it beside the other backends and writes the CSV."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from uniaudio.kernels.activation import bias_gelu, swiglu
from uniaudio.kernels.benchmarks import packed
from uniaudio.kernels.benchmarks.measure import Table, add_both, commit, random, say
from uniaudio.kernels.embedding import frame_embedding
from uniaudio.kernels.frame_attention import frame_attention
from uniaudio.kernels.loss import linear_cross_entropy
from uniaudio.kernels.norm import add_layer_norm, layer_norm, rms_norm

SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}


def sdpa(backend: SDPBackend, qkv: torch.Tensor) -> torch.Tensor:
    """Causal SDPA on the packed projection, output token-major."""
    query, key, value = qkv.permute(3, 0, 2, 1, 4)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)


def bench_frame_attention(table: Table, frames: int, codes: int, heads: int, head_dim: int) -> None:
    """Frame attention beside every backend of SDPA."""
    qkv = random(frames, codes, heads, 3, head_dim)
    shape = f"{frames}x{codes}x{heads}x{head_dim}"
    size = 2.0 * frames * codes * heads * head_dim
    moved = (4 * size, 7 * size)
    add_both(table, "frame_attention", shape, "triton", lambda x: frame_attention(x, backend="triton"), [qkv], moved)
    for name, backend in SDPA.items():
        add_both(table, "frame_attention", shape, name, lambda x, backend=backend: sdpa(backend, x), [qkv], moved)


def bench_norm(table: Table, rows: int, width: int) -> None:
    """Residual add + LayerNorm, LayerNorm and RMSNorm beside eager PyTorch."""
    x, residual, weight, bias = random(rows, width), random(rows, width), random(width), random(width)
    size, shape = 2.0 * rows * width, f"{rows}x{width}"
    for backend in ("triton", "torch"):
        add_both(
            table, "add_layer_norm", shape, backend, partial(add_layer_norm, eps=1e-5, backend=backend),
            [x, residual, weight, bias], (4 * size, 4 * size),
        )  # fmt: skip
        add_both(
            table,
            "layer_norm",
            shape,
            backend,
            partial(layer_norm, eps=1e-5, backend=backend),
            [x, weight, bias],
            (2 * size, 3 * size),
        )
        add_both(table, "rms_norm", shape, backend, partial(rms_norm, eps=1e-5, backend=backend), [x, weight], (2 * size, 3 * size))


def bench_activation(table: Table, rows: int, width: int) -> None:
    """Bias + GELU and SwiGLU beside eager PyTorch."""
    x, bias, gate_up = random(rows, width), random(width), random(rows, 2 * width)
    size, shape = 2.0 * rows * width, f"{rows}x{width}"
    for backend in ("triton", "torch"):
        for form in ("exact", "tanh"):
            add_both(
                table, f"bias_gelu {form}", shape, backend, lambda *a, b=backend, f=form: bias_gelu(*a, approximate=f, backend=b),
                [x, bias], (2 * size, 3 * size),
            )  # fmt: skip
        add_both(table, "swiglu", shape, backend, lambda a, b=backend: swiglu(a, backend=b), [gate_up], (3 * size, 5 * size))


def bench_embedding(table: Table, frames: int, codes: int, rows: int, width: int) -> None:
    """Frame embedding with positions beside eager PyTorch."""
    ids = torch.randint(0, rows, (frames, codes), device="cuda")
    positions = torch.arange(frames, device="cuda") % 1024
    tables = [random(rows, width), random(3000, width)]
    read = 2.0 * (rows + 1024) * width + 8 * frames * (codes + 1)
    moved = (read + 2 * frames * width, 2.0 * frames * width + 2 * (rows + 3000) * width + 8 * frames * (codes + 1))
    for backend in ("triton", "torch"):
        add_both(
            table, "frame_embedding", f"{frames}x{codes} V{rows} D{width}", backend,
            lambda t, p, b=backend: frame_embedding(ids, t, positions, p, mode="sum", backend=b), tables, moved,
        )  # fmt: skip


def _both(function: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Forward and backward in one."""
    return torch.autograd.grad(function().sum(), leaves)


def bench_loss(table: Table, codes: int, width: int, rows: int, num_valid: int) -> None:
    """Forward and backward in one, beside eager PyTorch and the chunked reference."""
    hidden, weight = random(codes, width), random(rows, width)
    targets = torch.randint(0, num_valid, (codes,), device="cuda")
    mask = torch.ones(codes, dtype=torch.int8, device="cuda")

    def eager() -> torch.Tensor:
        return F.cross_entropy((hidden @ weight.T)[:, :num_valid].float(), targets, reduction="none")

    losses = {
        "triton": lambda: linear_cross_entropy(hidden, weight, targets, mask, num_valid=num_valid, backend="triton"),
        "torch chunked": lambda: linear_cross_entropy(hidden, weight, targets, mask, num_valid=num_valid, backend="torch"),
        "torch eager": eager,
    }
    flops = 6.0 * codes * width * rows
    moved = 2.0 * (2 * codes * width + 2 * rows * width)
    for name, function in losses.items():
        table.add(
            "linear_cross_entropy", f"{codes} codes V{num_valid} D{width}", "both", name,
            partial(_both, function, [hidden, weight]), bytes_moved=moved, flops=flops,
        )  # fmt: skip


def bench_frames(table: Table) -> None:
    """The paper's three codes, eight codes, and a million frames."""
    bench_frame_attention(table, 8192, 3, 12, 128)
    bench_frame_attention(table, 8192, 8, 12, 128)
    bench_frame_attention(table, 1_000_000, 3, 12, 64)


BENCHES: dict[str, Callable[[Table], None]] = {
    "frame_attention": bench_frames,
    "packed_96": lambda table: packed.bench(table, 16, 96),
    "packed_128": lambda table: packed.bench(table, 12, 128),
    "one_document": packed.bench_single,
    "norm": lambda table: bench_norm(table, 24_576, 1536),
    "activation": lambda table: bench_activation(table, 24_576, 6144),
    "embedding": lambda table: bench_embedding(table, 16_384, 3, 4224, 1536),
    "loss": lambda table: bench_loss(table, 24_576, 1536, 4224, 4213),
}


def main() -> None:
    """Correctness first (a red check stops the run), then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV")
    parser.add_argument("--commit", default=commit(), help="name of the measured version")
    parser.add_argument("--only", nargs="*", default=[], choices=[*BENCHES], help="these groups alone")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    packed.check()
    say("packed-document attention agrees with float32 and with the other backends")
    table = Table(arguments.commit)
    for name, bench in BENCHES.items():
        if not arguments.only or name in arguments.only:
            bench(table)
    table.write(arguments.out / "kernels.csv")


if __name__ == "__main__":
    main()
