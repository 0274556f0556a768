"""compute-sanitizer over every kernel on small shapes: memory, races in shared memory, barriers.

`python3 tests/gpu/sanitize_kernels.py --seconds 180` runs each case once without the tool, so that Triton's cache holds the kernels, then
the tools beside each other on one GPU, and prints what each found; exit status 1 where one found something or did not end in time.
The cases are those that benchmarks/ahead.py compiles (every launch in use), and odd shapes through the public functions.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product

import torch

from uniaudio.kernels.activation import bias_gelu, swiglu
from uniaudio.kernels.benchmarks import ahead
from uniaudio.kernels.embedding import frame_embedding
from uniaudio.kernels.frame_attention import frame_attention
from uniaudio.kernels.loss import linear_cross_entropy
from uniaudio.kernels.norm import add_layer_norm, add_rms_norm, branch_layer_norm
from uniaudio.kernels.rotary import rotate
from uniaudio.kernels.varlen_attention import varlen_attention

TOOLS = ("memcheck", "racecheck", "synccheck")
LIBRARY = "nvjet_"  # cuBLAS's matrix products (references, the loss's projection): racecheck takes their asynchronous copies for races
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _run(function: Callable[..., object], *inputs: torch.Tensor) -> None:
    """Forward and backward of one op."""
    leaves = [tensor.requires_grad_() for tensor in inputs]
    result = function(*leaves)
    outputs = [out for out in (result if isinstance(result, tuple) else (result,)) if isinstance(out, torch.Tensor) and out.requires_grad]
    torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs], allow_unused=True)


def odd_shapes(dtype: torch.dtype, device: str) -> None:
    """Sizes that fill no tile, in one dtype."""

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    def integers(values: list) -> torch.Tensor:
        return torch.tensor(values, device=device)

    for codes, width in product((1, 3, 5), (32, 40, 128)):
        _run(lambda x: frame_attention(x, backend="triton"), randn(7, codes, 3, 3, width))
    starts, prefixes = integers([[0, 5, 75, 149], [0, 10, 150, 150]]), integers([[3, 40, 0, 1], [10, 139, 0, 0]])
    for width in (40, 64, 96, 128):
        for prefix in (None, prefixes):
            _run(lambda x, prefix=prefix: varlen_attention(x, starts, prefix, backend="triton"), randn(2, 150, 2, 3, width))
    x, weight = randn(13, 96), randn(96)
    _run(lambda a, b, w, s: add_layer_norm(a, b, w, s, 1e-5, backend="triton"), x, randn(13, 96), weight, randn(96))
    _run(lambda a, w, s: branch_layer_norm(a, w, s, 1e-5, backend="triton"), randn(1, 1000), randn(1000), randn(1000))
    _run(lambda a, b, w: add_rms_norm(a, b, w, 1e-5, backend="triton"), randn(13, 96), randn(13, 96), randn(96))
    for form in ("exact", "tanh"):
        _run(lambda a, b, form=form: bias_gelu(a, b, approximate=form, backend="triton"), randn(17, 100), randn(100))
    _run(lambda a: swiglu(a, backend="triton"), randn(17, 200))
    codes_XQ, positions = integers([[0, 6, 3], [6, 6, 0], [1, 2, 3]]), integers([0, 1, 4])
    _run(lambda t, p: frame_embedding(codes_XQ, t, positions, p, mode="sum", backend="triton"), randn(7, 40), randn(5, 40))
    _run(lambda x: rotate(x, positions, backend="triton"), randn(3, 5, 3, 40))
    targets, mask = integers([0, 4, 36, 2, 1]), integers([1, 1, 0, 2, 1]).to(torch.int8)
    _run(lambda h, w: linear_cross_entropy(h, w, targets, mask, num_valid=37, backend="triton"), randn(5, 48), randn(40, 48))


def run_cases(device: str) -> None:
    """Every launch in use once, then the odd shapes."""
    torch.set_default_device(device)
    for name, case in ahead.CASES.items():
        case()
        if device == "cuda":
            torch.cuda.synchronize()
        sys.stdout.write(f"{name}\n")
    for dtype in DTYPES:
        odd_shapes(dtype, device)
    if device == "cuda":
        torch.cuda.synchronize()
    sys.stdout.write("all cases ran\n")


def accused(text: str) -> set[str]:
    """Names of the kernels in which a tool reports an access."""
    return set(re.findall(r"access at (\w+)", text))


def main() -> None:
    """The plain run, then the tools at one time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=180, help="limit of the tools' run")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--cases", choices=("cuda", "cpu"), help="only run the cases here, under no tool")
    arguments = parser.parse_args()
    if arguments.cases:
        run_cases(arguments.cases)
        return
    cases = [sys.executable, __file__, "--cases", "cuda"]
    begin = time.monotonic()
    subprocess.run(cases, check=True, stdout=subprocess.DEVNULL)
    sys.stdout.write(f"every case ran without a tool in {time.monotonic() - begin:.0f} s\n")
    # Without PyTorch's cache of blocks an access beyond a tensor is one beyond an allocation.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    running = {
        tool: subprocess.Popen(
            ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *cases],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for tool in arguments.tools
    }  # fmt: skip
    clean = True
    deadline = time.monotonic() + arguments.seconds
    for tool, process in running.items():
        library: object = False
        try:
            text = process.communicate(timeout=max(1, deadline - time.monotonic()))[0]
            names = accused(text)
            library = process.returncode == 9 and names and all(name.startswith(LIBRARY) for name in names)
            verdict = "clean" if process.returncode == 0 or library else f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            text, verdict = process.communicate()[0], f"cut after {arguments.seconds} s"
        clean &= verdict == "clean"
        found = [line for line in text.splitlines() if line.startswith("=========")]
        last = [line for line in text.splitlines() if not line.startswith("=========")][-1:]
        also = f" (reports in {LIBRARY}* alone, which are cuBLAS's)" if library else ""
        sys.stdout.write(f"{tool}: {verdict}{also}; last: {last}\n" + "".join(f"  {line}\n" for line in found[:8] + found[-2:]))
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
