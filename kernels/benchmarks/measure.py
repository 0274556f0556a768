"""Timing, ceilings and the rows of the result table."""

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import triton

QUANTILES = (0.2, 0.5, 0.8)
QUEUE_CYCLES = 1_800_000  # about a millisecond of an H100's or H200's clock


@dataclass(frozen=True)
class Row:
    """One measurement: milliseconds at the 20th, 50th and 80th percentile, and the time that its bytes need at copy bandwidth."""

    kernel: str
    shape: str
    dtype: str
    direction: str
    backend: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    floor_ms: float
    over_floor: float
    tflops: float
    peak_mib: float
    gpu: str
    torch: str
    triton: str
    commit: str


def milliseconds(function: Callable[[], object], *, repeat_ms: int = 60) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile of one call.

    Before each call 1 GiB is overwritten, which empties the L2 cache, and the GPU is kept busy for about another millisecond, in which
    Python queues the call's kernels, so that the events time the GPU and not the launches (autograd's take up to 0.7 ms).
    """
    flush = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        function()
    times: list[float] = []
    while len(times) < 12 or (sum(times) < repeat_ms and len(times) < 100):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        torch.cuda._sleep(QUEUE_CYCLES)
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    low, middle, high = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return low, middle, high


def captured(function: Callable[[], object]) -> Callable[[], object]:
    """`function`'s kernels as a CUDA graph, one launch for all; run once before, so that they are compiled."""
    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def copy_bandwidth() -> float:
    """Bytes read and written a second by a device-to-device copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source))[1] * 1e-3)


def commit() -> str:
    """Commit of the tree, or `unknown` outside a checkout."""
    try:
        return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Table:
    """Collects rows, prints each as it comes, writes them all."""

    def __init__(self, commit_name: str) -> None:
        self.rows: list[Row] = []
        self.bandwidth = copy_bandwidth()
        self.where = {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "commit": commit_name,
        }
        say(f"copy {self.bandwidth / 1e12:.2f} TB/s, {self.where}")

    def add(
        self,
        kernel: str,
        shape: str,
        direction: str,
        backend: str,
        function: Callable[[], object],
        *,
        bytes_moved: float,
        flops: float = 0.0,
    ) -> None:
        """Times `function`; a backend that refuses the shape is a row of the printed table, not of the file."""
        label = f"{kernel:17s} {shape:26s} {direction:8s} {backend:14s}"
        try:
            function()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function()
            torch.cuda.synchronize()
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
            low, middle, high = milliseconds(function)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            say(f"{label} does not run: {str(error).splitlines()[0][:90]}")
            return
        floor = bytes_moved / self.bandwidth * 1e3
        row = Row(
            kernel, shape, "bfloat16", direction, backend, round(low, 5), round(middle, 5), round(high, 5), round(floor, 5),
            round(middle / floor, 3), round(flops / middle / 1e9, 1), round(peak, 1), **self.where,
        )  # fmt: skip
        self.rows.append(row)
        say(f"{label} {middle:8.4f} ms  {row.over_floor:7.2f} x floor  {row.tflops:6.1f} TFLOP/s  {peak:8.1f} MiB")

    def write(self, path: Path) -> None:
        """All rows as CSV."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)


def random(*shape: int, grad: bool = True) -> torch.Tensor:
    """bf16 leaf of standard normal values."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).requires_grad_(grad)


def gradient(output: torch.Tensor | tuple[torch.Tensor, ...], inputs: list[torch.Tensor]) -> Callable[[], object]:
    """The backward pass alone, repeatable."""
    outputs = output if isinstance(output, tuple) else (output,)
    upstream = [torch.randn_like(out) for out in outputs]
    return lambda: torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)


def add_both(
    table: Table,
    kernel: str,
    shape: str,
    backend: str,
    function: Callable[..., object],
    inputs: list[torch.Tensor],
    moved: tuple,
    flops: float = 0,
) -> None:
    """Forward and backward rows; `moved`: bytes of each."""
    table.add(kernel, shape, "forward", backend, lambda: function(*inputs), bytes_moved=moved[0], flops=flops)
    try:
        output = function(*inputs)
    except (RuntimeError, ValueError):
        return
    table.add(kernel, shape, "backward", backend, gradient(output, inputs), bytes_moved=moved[1], flops=2.5 * flops)


def say(line: str) -> None:
    """One line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def lognormal_documents(rows: int, frames: int, *, mean: float = 450, low: int = 100, high: int = 1500, seed: int = 0) -> list[list[int]]:
    """First frames of documents of lognormal length that fill each row."""
    generator = torch.Generator().manual_seed(seed)
    packed = []
    for _ in range(rows):
        starts = [0]
        while True:
            length = torch.empty(1).log_normal_(torch.tensor(mean).log().item() - 0.18, 0.6, generator=generator).item()
            starts.append(starts[-1] + int(min(max(length, low), high)))
            if starts[-1] >= frames:
                break
        packed.append(starts[:-1])
    return packed
