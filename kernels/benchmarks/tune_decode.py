"""Tries launches of decode_linear on the shapes of `paper_1b`'s generation, in a CUDA graph over more weights than the L2 cache holds.

python3 -m uniaudio.kernels.benchmarks.tune_decode          # about four minutes on one GPU; a line a shape as it goes
"""

import itertools
import sys
from collections.abc import Iterator

import torch

from uniaudio.kernels.decode_linear.triton_kernels import Launch, decode_linear, default_launch
from uniaudio.kernels.device import streaming_multiprocessors

SHAPES = ((4608, 1536, True), (1536, 1536, False), (6144, 1536, True), (1536, 6144, False))  # outputs, inputs, behind a norm
READ_BYTES = 200e6  # of weights a replay: four times an H100's L2 cache
SHARED_BYTES = 200_000


def launches(outputs: int) -> Iterator[Launch]:
    """Those that fit into shared memory, give every warp work and occupy half of the multiprocessors."""
    for width, depth, stages, warps in itertools.product((8, 16, 32, 64), (64, 128, 256, 512), (2, 3, 5, 7), (1, 2, 4, 8)):
        if width * depth * 2 * stages < SHARED_BYTES and width * depth >= 256 * warps and outputs // width >= 60:
            yield Launch(width, depth, stages, warps)


def microseconds(outputs: int, inputs: int, normed: bool, rows: int, launch: Launch) -> float:
    """Time of one call among calls with other weights."""
    count = max(8, int(READ_BYTES / (2 * outputs * inputs)))
    weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    bias, sums = torch.randn(outputs, device="cuda"), torch.randn(outputs, device="cuda") if normed else None
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    residual = None if normed else torch.randn(rows, outputs, device="cuda", dtype=torch.bfloat16)

    def run() -> None:
        for weight in weights:
            decode_linear(x, weight, bias, None, sums, 1e-5, None, residual, launch)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(3):
        graph.replay()
    end.record()
    end.synchronize()
    return 1000 * begin.elapsed_time(end) / 3 / count


def main() -> None:
    """A line for each shape and number of rows: the launch in use, and the six fastest."""
    processors = streaming_multiprocessors(torch.device("cuda"))
    for (outputs, inputs, normed), rows in itertools.product(SHAPES, (1, 16, 64)):
        used = default_launch(rows, outputs, inputs, processors)
        found = {launch: microseconds(outputs, inputs, normed, rows, launch) for launch in {used, *launches(outputs)}}
        best = sorted(found, key=lambda launch: found[launch])[:6]
        speed = 2 * outputs * inputs / found[used] / 1e6
        sys.stdout.write(f"{inputs} -> {outputs}, {rows} rows: {found[used]:.2f} us, {speed:.2f} TB/s by {used}; fastest ")
        sys.stdout.write("; ".join(f"{found[launch]:.2f} us {launch}" for launch in best) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
