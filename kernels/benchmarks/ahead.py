"""Compiles the kernels for an H100 without one: registers, spilled bytes and shared memory of every launch in use.

The ops run on CPU tensors of their real shapes' kind, but each launch is compiled (ptxas comes with Triton) and recorded instead of run.
What this cannot tell is time; what it can: that a kernel compiles for the card in bf16, fits into an SM, and does not spill.
"""

import argparse
import csv
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from uniaudio.kernels.activation import triton_kernels as activation
from uniaudio.kernels.benchmarks.measure import say
from uniaudio.kernels.decode_attention import triton_kernels as decode_attention
from uniaudio.kernels.decode_linear import few_rows
from uniaudio.kernels.decode_linear import triton_kernels as decode_linear
from uniaudio.kernels.draw import Number, Setting
from uniaudio.kernels.draw import triton_kernels as draw
from uniaudio.kernels.embedding import triton_kernels as embedding
from uniaudio.kernels.fp8_linear import triton_kernels as fp8_linear
from uniaudio.kernels.frame_attention import triton_kernels as frame
from uniaudio.kernels.loss import triton_kernels as loss
from uniaudio.kernels.norm import triton_kernels as norm
from uniaudio.kernels.optimizer import AdamW, Segments
from uniaudio.kernels.optimizer import triton_kernels as optimizer
from uniaudio.kernels.packed_bias import triton_kernels as packed_bias
from uniaudio.kernels.rotary import triton_kernels as rotary
from uniaudio.kernels.varlen_attention import backward as varlen_backward
from uniaudio.kernels.varlen_attention import forward as varlen_forward
from uniaudio.kernels.varlen_attention.boundaries import document_spans
from uniaudio.kernels.varlen_attention.tiles import default_plan

H100 = GPUTarget("cuda", 90, 32)
SHARED_OF_AN_SM = 232_448  # bytes that one program of an H100 may take
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Resources:
    """What one compiled launch takes: registers of a thread, bytes of local memory of a thread (spills), shared bytes of a program."""

    case: str
    kernel: str
    warps: int
    registers: int
    spilled: int
    shared: int


class _Target:
    """Stands in for Triton's driver: names the card to compile for and launches nothing."""

    def get_current_target(self) -> GPUTarget:
        return H100

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling() -> Iterator[list[CompiledKernel]]:
    """Inside, every launch is compiled for an H100 and added to the list that is yielded."""
    compiled: list[CompiledKernel] = []
    launch, active = JITFunction.run, driver._active

    def record(self: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> CompiledKernel:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        compiled.append(kernel)
        return kernel

    JITFunction.run = record  # type: ignore[method-assign]
    driver.set_active(_Target())
    try:
        yield compiled
    finally:
        JITFunction.run = launch  # type: ignore[method-assign]
        driver._active = active


def resources(case: str, kernel: CompiledKernel) -> Resources:
    """Registers and local memory as cuobjdump reads them in the compiled binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump told no registers of {kernel.metadata.name}: {text[:200]}")
    return Resources(case, kernel.metadata.name, kernel.metadata.num_warps, int(found[1]), int(found[2]), kernel.metadata.shared)


def _bf16(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.bfloat16)


def _varlen(heads: int, head_dim: int, packed: bool, prefix: bool = False) -> None:
    qkv = _bf16(1, 256, heads, 3, head_dim)
    starts = torch.tensor([[0, 128]] if packed else [[0]], dtype=torch.int32)
    spans = document_spans(starts, starts if prefix else None, 256)
    plan = default_plan(head_dim, qkv.dtype, packed=packed, bulk=True)
    out, sums = varlen_forward.forward(qkv, spans, plan.forward)
    varlen_backward.backward(qkv, out, sums, out, spans, plan)


def _frame(codes: int, head_dim: int) -> None:
    qkv = _bf16(64, codes, 12, 3, head_dim)
    frame.backward(qkv, frame.forward(qkv))


def _norm(centered: bool) -> None:
    x, weight = _bf16(256, 1536), _bf16(1536)
    _, total, means, scales = norm.forward(x, x, weight, weight if centered else None, 1e-5)
    norm.backward(total, weight, means, scales, x, x, sum_x=centered, sum_total=centered)


def _gelu(exact: bool) -> None:
    x, bias = _bf16(256, 6144), _bf16(6144)
    activation.gelu_backward(x, bias, activation.gelu_forward(x, bias, exact), exact)


def _packed_bias(heads: int, head_dim: int) -> None:
    packed_bias.bias_gradient(_bf16(64, heads, 3, head_dim))


def _rotary(heads: int, head_dim: int) -> None:
    rotary.turned(_bf16(64, heads, 3, head_dim), torch.zeros(64, dtype=torch.int32))


def _embedding(concat: bool) -> None:
    codes, positions = torch.zeros(64, 3, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)
    table, places = _bf16(4224, 512 if concat else 1536), _bf16(3000, 1536)
    grad = embedding.forward(codes, table, positions, places, concat)
    embedding.gradients(codes, table, positions, places, grad, concat)


def _loss() -> None:
    hidden, weight, counted = _bf16(64, 1536), _bf16(4224, 1536), torch.arange(64)
    (_, sums, _), kept = loss.statistics(hidden, weight, counted, counted, 0, 4213, keep=True)
    loss.gradients(hidden, weight, counted, counted, sums, sums, 0, 4213, kept)


def _decode_attention(slots: int) -> None:
    cache = _bf16(2, 12, slots, 128)
    decode_attention.decode_attention(_bf16(2, 12, 3, 128), cache, cache, torch.zeros(2, dtype=torch.int32), True)


def _operands(rows: int, inputs: int, outputs: int, *, int8: bool = False) -> decode_linear.Operands:
    """A map that widens has a norm and a GELU, one that narrows a residual, as in a block."""
    weight, vector, widens = _bf16(outputs, inputs), torch.zeros(outputs), inputs < outputs
    weight, scale = (weight.to(torch.int8), vector) if int8 else (weight, None)
    normed, gelu, residual = (vector, "exact", None) if widens else (None, None, _bf16(rows, outputs))
    return decode_linear.Operands(_bf16(rows, inputs), weight, vector, scale, normed, 1e-5, gelu, residual)


def _decode_linear(rows: int, inputs: int, outputs: int) -> None:
    decode_linear.decode_linear(_operands(rows, inputs, outputs), decode_linear.default_launch(rows, outputs, inputs, 132))


def _few_rows(rows: int, inputs: int, outputs: int, *, int8: bool = False) -> None:
    launch = few_rows.few_rows_launch(rows, outputs, inputs, torch.bfloat16)
    assert launch is not None
    few_rows.few_rows(_operands(rows, inputs, outputs, int8=int8), launch, True)


def _draw() -> None:
    logits, history = _bf16(2, 1025), torch.zeros(2, 1025, dtype=torch.int32)
    settings, numbers = torch.zeros(2, len(Setting)), torch.zeros(2, len(Number), dtype=torch.int64)
    draw.draw(logits, settings, numbers, history, torch.zeros(2), torch.zeros(2, 3, dtype=torch.int64), 0, 128, 9)


def _optimizer() -> None:
    flat, gradients, segments = torch.zeros(4096), [_bf16(4096)], Segments([0], [4096])
    optimizer.square_sum(segments, gradients)
    optimizer.accumulate(flat, segments, gradients, first=False)
    settings = AdamW(rate=1e-4, decay=0.1, betas=(0.9, 0.95), eps=1e-8, step=1)
    optimizer.adamw_step((flat, flat, flat, _bf16(4096)), segments, gradients, torch.ones(()), settings)


def _fp8(width: int) -> None:
    x, vector = _bf16(64, width), _bf16(width)
    if width == 1536:
        fp8_linear.norm_cast(x, x, vector, vector, 1e-5)
        eight, squares = fp8_linear.reach_cast(x)
        fp8_linear.reach(eight.columns, eight.scale)
        fp8_linear.turned(eight.rows)
    else:
        squares = fp8_linear.reach(x)
        bound = fp8_linear.gelu_bound(_bf16(1536), _bf16(1536), vector, squares)
        fp8_linear.gelu_cast(x, vector, bound, True)
        fp8_linear.gelu_gradient_cast(x, vector, x, squares, squares, True)


CASES: dict[str, Callable[[], None]] = {
    "frame_attention 3 x 128": lambda: _frame(3, 128),
    "frame_attention 8 x 128": lambda: _frame(8, 128),
    "frame_attention 32 x 256": lambda: _frame(32, 256),
    "varlen_attention packed 128": lambda: _varlen(12, 128, True),
    "varlen_attention packed 96": lambda: _varlen(16, 96, True),
    "varlen_attention packed 64": lambda: _varlen(12, 64, True),
    "varlen_attention one document 128": lambda: _varlen(12, 128, False),
    "varlen_attention prefix 128": lambda: _varlen(12, 128, True, prefix=True),
    "add_layer_norm 1536": lambda: _norm(True),
    "add_rms_norm 1536": lambda: _norm(False),
    "bias_gelu exact 6144": lambda: _gelu(True),
    "bias_gelu tanh 6144": lambda: _gelu(False),
    "packed_bias 12 x 128": lambda: _packed_bias(12, 128),
    "rotary 6 x 64": lambda: _rotary(6, 64),
    "rotary 12 x 128": lambda: _rotary(12, 128),
    "frame_embedding sum": lambda: _embedding(False),
    "frame_embedding concat": lambda: _embedding(True),
    "linear_cross_entropy": _loss,
    "decode_attention 3000 slots": lambda: _decode_attention(3000),
    "decode_attention 3 slots": lambda: _decode_attention(3),
    "decode_linear 1 row up": lambda: _few_rows(1, 1536, 6144),
    "decode_linear 1 row down": lambda: _few_rows(1, 6144, 1536),
    "decode_linear 16 rows up": lambda: _few_rows(16, 1536, 6144),
    "decode_linear 16 rows down": lambda: _few_rows(16, 6144, 1536),
    "decode_linear 1 row up int8": lambda: _few_rows(1, 1536, 6144, int8=True),
    "decode_linear 1 row down int8": lambda: _few_rows(1, 6144, 1536, int8=True),
    "decode_linear 64 rows up": lambda: _decode_linear(64, 1536, 6144),
    "decode_linear 64 rows down": lambda: _decode_linear(64, 6144, 1536),
    "draw 1025 codes": _draw,
    "optimizer": _optimizer,
    "fp8_linear 1536": lambda: _fp8(1536),
    "fp8_linear 6144": lambda: _fp8(6144),
}


def measure(names: list[str]) -> list[Resources]:
    """Compiles the cases of these names, one row a kernel."""
    rows: dict[tuple[str, str], Resources] = {}
    for name in names:
        with compiling() as compiled:
            CASES[name]()
        for kernel in compiled:
            row = resources(name, kernel)
            rows[name, row.kernel] = row
    return list(rows.values())


def main() -> None:
    """Prints the table and writes it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="CSV to write")
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help="these cases alone")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.cases:
        for row in measure([name]):
            rows.append(row)
            taken = f"{row.registers:4d} registers {row.spilled:5d} spilled {row.shared:7d} shared"
            say(f"{row.case:34s} {row.kernel:20s} {row.warps:2d} warps {taken}")
    if arguments.out:
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Resources)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
