"""Launches and forms of a kernel beside each other: each is checked against float32, then timed, with the best library in the same table.

`python -m uniaudio.kernels.benchmarks.variants --out FOLDER` compiles in parallel processes first (Triton's cache on disk carries the
result), then prints a line a form and writes it to FOLDER/variants.csv at once. A form that errs more than twice as much as the peer is
printed as wrong, never timed. The winners are written into the kernels by hand.
"""

import argparse
import csv
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import torch
from triton.errors import TritonError

from uniaudio.kernels.benchmarks.attention_cases import ATTENTION_CASES
from uniaudio.kernels.benchmarks.case import Case, Results
from uniaudio.kernels.benchmarks.decode_cases import DECODE_CASES
from uniaudio.kernels.benchmarks.measure import captured, copy_bandwidth, milliseconds, say
from uniaudio.kernels.benchmarks.memory_cases import MEMORY_CASES
from uniaudio.kernels.checks import interpreted

CASES: dict[str, Callable[[], Case]] = {**ATTENTION_CASES, **MEMORY_CASES, **DECODE_CASES}
FAULTS = (RuntimeError, ValueError, TritonError)  # of a launch that the compiler, the driver or the kernel's own checks refuse


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


def selected(names: Sequence[str]) -> list[str]:
    """The cases of these names or that begin with these words; without any, all. Raises ValueError on an unknown name."""
    for name in names:
        if not any(_within(case, name) for case in CASES):
            raise ValueError(f"no case {name!r}; there are: {', '.join(CASES)}")
    return [case for case in CASES if not names or any(_within(case, name) for name in names)]


def _within(case: str, name: str) -> bool:
    return case == name or case.startswith(f"{name} ")


@cache
def case(name: str) -> Case:
    """The case of this name, its inputs made once until they are let go."""
    return CASES[name]()


def let_go() -> None:
    """Frees the inputs: those of all cases, or of one in each worker, would fill the card."""
    case.cache_clear()
    torch.cuda.empty_cache()


def form_names(name: str) -> list[str]:
    """The forms of a case."""
    names = list(case(name).forms)
    let_go()
    return names


def compile_form(name: str, form: str) -> str | None:
    """Runs a form once in a worker, for Triton's cache; returns the error where it does not run."""
    try:
        case(name).forms[form]()
        torch.cuda.synchronize()
    except FAULTS as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:100]
    finally:
        let_go()
    return None


def worst_error(results: Results, truth: Results) -> float:
    """Largest relative Frobenius distance of the tensors named in `truth`; infinite where one holds NaN."""
    distances = [((results[name].double() - exact.double()).norm() / exact.double().norm()).item() for name, exact in truth.items()]
    return max(distance if distance == distance else float("inf") for distance in distances)


def compare(name: str, faults: dict[str, str | None], bandwidth: float) -> Iterator[Outcome]:
    """Checks and times the peer and the forms of a case, and prints each."""
    chosen = case(name)
    truth, peer = chosen.truth(), chosen.peer()
    allowed = 2 * worst_error(peer(), truth)
    peer_ms = 0.0
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
        low, middle, high = milliseconds(captured(run) if chosen.graph else run, repeat_ms=25)
        peer_ms = peer_ms or middle
        outcome = Outcome(
            name, form, round(low, 4), round(middle, 4), round(high, 4), round(chosen.flops / middle / 1e9, 1),
            round(chosen.bytes / (middle * 1e-3) / bandwidth, 3), round(peer_ms / middle, 3), error, allowed,
        )  # fmt: skip
        rates = f"{outcome.tflops:6.1f} TFLOP/s {outcome.of_copy:5.2f} of copy {outcome.over_peer:5.2f} x the peer"
        say(f"{name:18s} {form:52s} {middle:7.4f} ms {rates}  error {error:.1e}")
        yield outcome
    let_go()


def write(path: Path, outcomes: Iterable[Outcome]) -> None:
    """The table as CSV, each line on disk before the next is measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Outcome)])
        writer.writeheader()
        for outcome in outcomes:
            writer.writerow(asdict(outcome))
            file.flush()


def measured(names: Sequence[str], workers: int) -> Iterator[Outcome]:
    """Compiles all forms of the cases, then checks and times one after another."""
    wanted = {name: form_names(name) for name in names}
    pairs = [(name, form) for name, forms in wanted.items() for form in forms]
    say(f"compiles {len(pairs)} forms of {len(names)} cases")
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        faults = dict(zip(pairs, pool.map(compile_form, *zip(*pairs))))
    bandwidth = copy_bandwidth()
    say(f"copy {bandwidth / 1e12:.2f} TB/s, {torch.cuda.get_device_name()}")
    for name, forms in wanted.items():
        yield from compare(name, {form: faults[name, form] for form in forms}, bandwidth)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile all, check and time all, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"cases, by name or by their first words: {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, required=True, help="folder of variants.csv")
    parser.add_argument("--workers", type=int, default=14, help="processes that compile")
    options = parser.parse_args(arguments)
    try:
        names = selected(options.only)
    except ValueError as error:
        parser.error(str(error))
    if interpreted() or not torch.cuda.is_available():
        seen = "TRITON_INTERPRET=1" if interpreted() else "no GPU that torch can use"
        parser.error(f"variants times compiled kernels on a CUDA GPU | seen: {seen} | without one, benchmarks.ahead compiles for an H100")
    write(options.out / "variants.csv", measured(names, options.workers))


if __name__ == "__main__":
    main()
