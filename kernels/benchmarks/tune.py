"""Tries launches of each kernel on the shapes of kernels/README.md and prints the fastest; the winners are written into the kernels.

Compiles in parallel processes first (Triton's cache on disk carries the result), then times one after another.
"""

import argparse
import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import torch

from uniaudio.kernels.activation import triton_kernels as activation
from uniaudio.kernels.benchmarks.measure import copy_bandwidth, lognormal_documents, milliseconds, say
from uniaudio.kernels.benchmarks.packed import boundaries
from uniaudio.kernels.frame_attention import triton_kernels as frame
from uniaudio.kernels.norm import triton_kernels as norm
from uniaudio.kernels.varlen_attention import backward as varlen_backward
from uniaudio.kernels.varlen_attention import forward as varlen_forward
from uniaudio.kernels.varlen_attention.boundaries import document_spans
from uniaudio.kernels.varlen_attention.tiles import Launch, default_plan

Trial = tuple[str, str, tuple]  # group, case, launch


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def trials(groups: list[str]) -> Iterator[Trial]:
    """Every launch to be tried."""
    if "frame" in groups:
        forms = [(16, 1), (16, 2), (32, 1), (32, 2), (32, 4), (64, 4)]
        for codes, direction, form in itertools.product((3, 8), ("forward", "backward"), forms):
            yield "frame", f"{codes} {direction}", form
    if "norm" in groups:
        for rows, warps in itertools.product((1, 2, 4), (2, 4, 8)):
            yield "norm", "1536 forward", (rows, warps, 1)
        for shape, stages in itertools.product(
            ((1, 4, 4), (1, 4, 2), (2, 8, 2), (2, 8, 1), (4, 8, 1), (4, 16, 1), (2, 4, 2)), (1, 2, 3, 4)
        ):
            yield "norm", "1536 backward", (*shape, stages)
    if "activation" in groups:
        for features, rows, warps in itertools.product((512, 1024, 2048), (1, 2, 4), (4, 8)):
            yield "activation", "exact forward", (features, rows, warps, 1)
        for features, rows, warps, programs in itertools.product((256, 512, 1024), (1, 4), (4, 8), (8, 16)):
            yield "activation", "exact backward", (features, rows, warps, programs)
    if "varlen" in groups:
        stay = [(64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 128, 4, 2), (64, 32, 4, 3)]
        walk = [
            (64, 64, 4, 1),
            (64, 64, 4, 2),
            (64, 64, 8, 2),
            (64, 32, 4, 2),
            (64, 32, 4, 3),
            (128, 32, 8, 2),
            (128, 64, 8, 2),
            (128, 64, 8, 1),
        ]
        for case, direction in itertools.product(("12x128", "16x96", "single"), ("forward", "queries", "keys")):
            for launch in stay if direction == "forward" else walk:
                yield "varlen", f"{case} {direction}", launch


@cache
def inputs(group: str, case: str) -> tuple:
    """Tensors of a case and the bytes that it must move."""
    if group == "frame":
        codes = int(case.split()[0])
        qkv, grad = random(8192, codes, 12, 3, 128), random(8192, codes, 12 * 128)
        return (qkv, grad), (4 if "forward" in case else 7) * 2 * grad.numel()
    if group == "norm":
        x, residual, grad = (random(24_576, 1536) for _ in range(3))
        weight, bias, statistic = random(1536), random(1536), torch.rand(24_576, device="cuda")
        return (x, residual, grad, weight, bias, statistic), 4 * 2 * x.numel()
    if group == "activation":
        x, grad = random(24_576, 6144), random(24_576, 6144)
        return (x, grad, random(6144)), (2 if "forward" in case else 3) * 2 * x.numel()
    layout = case.split()[0]
    heads, head_dim = (12, 128) if layout == "single" else map(int, layout.split("x"))
    documents = [[0]] if layout == "single" else lognormal_documents(4, 8192)
    qkv, grad = random(len(documents), 8192, heads, 3, head_dim), random(len(documents), 8192, heads * head_dim)
    spans = document_spans(boundaries(documents, 8192), None, 8192)
    out, sums = varlen_forward.forward(qkv, spans, default_plan(head_dim, qkv.dtype, packed=True).forward)
    return (qkv, grad, out, sums, spans), 4 * 2 * grad.numel()


def call(trial: Trial) -> Callable[[], object]:
    """The launch of a trial, ready to run."""
    group, case, launch = trial
    tensors, _ = inputs(group, case)
    backward = not case.endswith("forward")
    if group == "frame":
        qkv, grad = tensors
        return (
            (lambda: frame.backward(qkv, grad, frame.Launch(*launch))) if backward else (lambda: frame.forward(qkv, frame.Launch(*launch)))
        )
    if group == "norm":
        x, residual, grad, weight, bias, statistic = tensors
        if backward:
            return lambda: norm.backward(x, weight, statistic, statistic, grad, residual, norm.Launch(*launch))
        return lambda: norm.forward(x, residual, weight, bias, 1e-5, norm.Launch(*launch))
    if group == "activation":
        x, grad, bias = tensors
        chosen = activation.Launch(*launch)
        return (
            (lambda: activation.gelu_backward(x, bias, grad, True, chosen))
            if backward
            else (lambda: activation.gelu_forward(x, bias, True, chosen))
        )
    return varlen_call(tensors, case, Launch(*launch))


def varlen_call(tensors: tuple, case: str, launch: Launch) -> Callable[[], object]:
    """One of the three kernels alone."""
    qkv, grad, out, sums, spans = tensors
    if case.endswith("forward"):
        return lambda: varlen_forward.forward(qkv, spans, launch)
    deltas, grad_qkv = torch.empty_like(sums), torch.empty_like(qkv)
    if case.endswith("queries"):
        return lambda: varlen_backward.backward_queries(qkv, out, sums, grad, deltas, grad_qkv, spans, launch)
    varlen_backward.backward_queries(
        qkv, out, sums, grad, deltas, grad_qkv, spans, default_plan(qkv.shape[-1], qkv.dtype, packed=True).queries
    )
    return lambda: varlen_backward.backward_keys(qkv, sums, grad, deltas, grad_qkv, spans, launch)


def compile_trial(trial: Trial) -> str | None:
    """Runs a trial once in a worker, for Triton's cache; returns the error where it does not run."""
    try:
        call(trial)()
        torch.cuda.synchronize()
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0][:100]
    return None


def main() -> None:
    """Compile all, time all, print the best of each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", default=["frame", "norm", "activation", "varlen"])
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--best", type=int, default=5)
    arguments = parser.parse_args()
    wanted = [trial for trial in trials(arguments.groups) if arguments.case in trial[1]]
    with ProcessPoolExecutor(arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        faults = dict(zip(wanted, pool.map(compile_trial, wanted)))
    bandwidth = copy_bandwidth()
    results: dict[tuple[str, str], list[tuple[float, tuple]]] = {}
    for trial in wanted:
        if faults[trial] is not None:
            say(f"{trial}: {faults[trial]}")
            continue
        results.setdefault(trial[:2], []).append((milliseconds(call(trial), repeat_ms=25)[1], trial[2]))
    for (group, case), times in results.items():
        floor = inputs(group, case)[1] / bandwidth * 1e3
        say(f"{group} {case}: " + "; ".join(f"{launch} {ms:.4f} ms ({ms / floor:.2f} x)" for ms, launch in sorted(times)[: arguments.best]))


if __name__ == "__main__":
    main()
