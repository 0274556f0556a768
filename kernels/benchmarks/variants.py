"""Forms of a kernel beside each other: each is checked against float32, then timed, with the best other backend in the same table.

`python -m uniaudio.kernels.benchmarks.variants --out FOLDER` compiles in parallel processes first (Triton's cache on disk carries the
result), prints a table a case and writes it as CSV. A form that errs more than twice as much as the peer is printed as wrong, never timed.
"""

import argparse
import csv
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path

import torch

from uniaudio.kernels.benchmarks import packed
from uniaudio.kernels.benchmarks.case import Case, Results, label
from uniaudio.kernels.benchmarks.measure import copy_bandwidth, lognormal_documents, milliseconds, say
from uniaudio.kernels.benchmarks.memory_cases import MEMORY_CASES
from uniaudio.kernels.varlen_attention import backward as varlen_backward
from uniaudio.kernels.varlen_attention import forward as varlen_forward
from uniaudio.kernels.varlen_attention import varlen_attention
from uniaudio.kernels.varlen_attention.boundaries import document_spans
from uniaudio.kernels.varlen_attention.tiles import Launch, default_plan

NAMES = ("query", "key", "value")
FRAMES = 8192


@dataclass(frozen=True)
class Outcome:
    """One line of the table; the ratio is the peer's time over this one's. A peer's backward pass is whole, queries and keys in one."""

    case: str
    form: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    tflops: float
    of_copy: float
    over_peer: float
    error: float
    allowed: float


SINGLE = {
    "forward": [
        Launch(64, 64, 4, 3),
        Launch(64, 64, 4, 3, bulk=True),
        Launch(64, 64, 4, 3, bulk=True, heads_together=4),
        Launch(128, 64, 8, 3, bulk=True),
        Launch(128, 64, 8, 2, bulk=True, registers=128),
        Launch(128, 32, 8, 4, bulk=True),
        Launch(128, 32, 8, 4, bulk=True, heads_together=4),
        Launch(128, 128, 8, 2, bulk=True),
    ],
    "queries": [
        Launch(64, 64, 4, 2),
        Launch(64, 64, 4, 2, bulk=True),
        Launch(64, 64, 4, 2, bulk=True, heads_together=4),
        Launch(64, 32, 4, 3, bulk=True),
        Launch(128, 64, 8, 2, bulk=True),
        Launch(128, 32, 8, 3, bulk=True),
    ],
    "keys": [
        Launch(64, 64, 4, 2),
        Launch(64, 64, 4, 2, bulk=True),
        Launch(64, 32, 4, 3, bulk=True),
        Launch(64, 64, 8, 2, bulk=True),
        Launch(128, 64, 8, 2, bulk=True),
        Launch(128, 64, 8, 2, bulk=True, heads_together=4),
        Launch(128, 32, 8, 2, bulk=True),
    ],
}
PACKED = {
    "forward": [Launch(64, 32, 4, 3), Launch(64, 32, 4, 3, bulk=True), Launch(64, 32, 4, 4, bulk=True), Launch(128, 32, 8, 4, bulk=True)],
    "queries": [Launch(64, 32, 4, 3), Launch(64, 32, 4, 3, bulk=True), Launch(64, 32, 4, 2, bulk=True)],
    "keys": [Launch(64, 64, 4, 2), Launch(64, 32, 4, 3), Launch(64, 32, 4, 3, bulk=True), Launch(64, 64, 8, 2, bulk=True)],
}


def _attention(layout: str, part: str) -> Case:
    """One kernel of attention: one document of 8192, or 4 rows of lognormal documents of `heads`x`width`."""
    heads, width = (12, 128) if layout == "single" else map(int, layout.split("x"))
    documents = [[0]] if layout == "single" else lognormal_documents(4, FRAMES)
    starts = packed.boundaries(documents, FRAMES)
    generator = torch.Generator(device="cuda").manual_seed(7)
    shape = (len(documents), FRAMES, heads)
    qkv = torch.randn(*shape, 3, width, device="cuda", dtype=torch.bfloat16, generator=generator)
    grad = torch.randn(*shape[:2], heads * width, device="cuda", dtype=torch.bfloat16, generator=generator)
    spans = document_spans(starts, None, FRAMES)
    plan = default_plan(width, qkv.dtype, packed=layout != "single")
    out, sums = varlen_forward.forward(qkv, spans, plan.forward)
    deltas, grad_qkv = torch.full_like(sums, float("nan")), torch.full_like(qkv, float("nan"))
    varlen_backward.backward_queries(qkv, out, sums, grad, deltas, torch.empty_like(qkv), spans, plan.queries)
    names = {"forward": ("out",), "queries": ("query",), "keys": ("key", "value")}[part]

    def run(launch: Launch) -> Results:
        if part == "forward":
            return {"out": varlen_forward.forward(qkv, spans, launch)[0]}
        if part == "queries":
            varlen_backward.backward_queries(qkv, out, sums, grad, deltas, grad_qkv, spans, launch)
        else:
            varlen_backward.backward_keys(qkv, sums, grad, deltas, grad_qkv, spans, launch)
        return dict(zip(NAMES, grad_qkv.unbind(3)))

    def differentiated(attend: Callable[[torch.Tensor], torch.Tensor], heads: slice, dtype: torch.dtype) -> Callable[[], Results]:
        leaf = qkv[:, :, heads].to(dtype).contiguous().requires_grad_()
        if part == "forward":
            return lambda: {"out": attend(leaf).detach()}
        result = attend(leaf)
        upstream = grad.unflatten(2, (-1, width))[:, :, heads].flatten(2).to(dtype)
        return lambda: dict(zip(NAMES, torch.autograd.grad(result, leaf, upstream, retain_graph=True)[0].unbind(3)))

    def truth() -> Results:
        exact = partial(varlen_attention, document_starts_BD=starts, backend="torch")
        # a head at a time: the scores of all would not fit
        each = [differentiated(exact, slice(head, head + 1), torch.float32)() for head in range(heads)]
        return {name: torch.cat([one[name] for one in each], dim=2) for name in names}

    forms: dict[str, Callable[[], Results]] = {
        label(launch): partial(run, launch) for launch in (SINGLE if layout == "single" else PACKED)[part]
    }
    peer = packed.cudnn if layout == "single" else packed.torch_varlen(documents, FRAMES)
    products = {"forward": 2, "queries": 3, "keys": 4}[part]
    return Case(
        forms, "cudnn" if layout == "single" else "torch varlen", lambda: differentiated(peer, slice(None), torch.bfloat16), truth,
        products * 2.0 * heads * width * packed.pairs(documents, FRAMES), 8.0 * grad.numel(), (grad_qkv,),
    )  # fmt: skip


CASES: dict[str, Callable[[], Case]] = {
    **{f"single {part}": partial(_attention, "single", part) for part in SINGLE},
    **{f"{layout} {part}": partial(_attention, layout, part) for layout in ("12x128", "16x96") for part in PACKED},
    **MEMORY_CASES,
}


@cache
def case(name: str) -> Case:
    """The case of this name, its inputs made once a process."""
    return CASES[name]()


def compile_form(name: str, form: str) -> str | None:
    """Runs a form once in a worker, for Triton's cache; returns the error where it does not run."""
    try:
        case(name).forms[form]()
        torch.cuda.synchronize()
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0][:100]
    finally:
        case.cache_clear()  # the inputs of all cases in all workers would fill the card
        torch.cuda.empty_cache()
    return None


def worst_error(results: Results, truth: Results) -> float:
    """Largest relative Frobenius distance of the tensors named in `truth`; infinite where one holds NaN."""
    distances = [((results[name].double() - exact.double()).norm() / exact.double().norm()).item() for name, exact in truth.items()]
    return max(distance if distance == distance else float("inf") for distance in distances)


def compare(name: str, faults: dict[str, str | None], bandwidth: float) -> list[Outcome]:
    """Checks and times the peer and the forms of a case, and prints each."""
    chosen = case(name)
    truth, peer = chosen.truth(), chosen.peer()
    allowed = 2 * worst_error(peer(), truth)
    peer_ms, outcomes = 0.0, []
    for form, run in {chosen.peer_name: peer, **chosen.forms}.items():
        if faults.get(form):
            say(f"{name:18s} {form:52s} does not run: {faults[form]}")
            continue
        for tensor in chosen.kept:
            tensor.fill_(float("nan"))
        error = worst_error(run(), truth)
        if error > allowed:
            say(f"{name:18s} {form:52s} WRONG: error {error:.2e}, allowed {allowed:.2e}")
            continue
        low, middle, high = milliseconds(run, repeat_ms=25)
        peer_ms = peer_ms or middle
        outcome = Outcome(
            name, form, round(low, 4), round(middle, 4), round(high, 4), round(chosen.flops / middle / 1e9, 1),
            round(chosen.bytes / (middle * 1e-3) / bandwidth, 3), round(peer_ms / middle, 3), error, allowed,
        )  # fmt: skip
        outcomes.append(outcome)
        rates = f"{outcome.tflops:6.1f} TFLOP/s {outcome.of_copy:5.2f} of copy {outcome.over_peer:5.2f} x the peer"
        say(f"{name:18s} {form:52s} {middle:7.4f} ms {rates}  error {error:.1e}")
    return outcomes


def main() -> None:
    """Compile all, check and time all, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--out", type=Path, required=True, help="folder of variants.csv")
    parser.add_argument("--workers", type=int, default=14)
    arguments = parser.parse_args()
    names = arguments.cases or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; there are: {', '.join(CASES)}")
    wanted = [(name, form) for name in names for form in case(name).forms]
    with ProcessPoolExecutor(arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        faults = dict(zip(wanted, pool.map(compile_form, *zip(*wanted))))
    bandwidth = copy_bandwidth()
    say(f"copy {bandwidth / 1e12:.2f} TB/s, {torch.cuda.get_device_name()}")
    outcomes = [row for name in names for row in compare(name, {form: faults.get((name, form)) for form in case(name).forms}, bandwidth)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "variants.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Outcome)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in outcomes)


if __name__ == "__main__":
    main()
