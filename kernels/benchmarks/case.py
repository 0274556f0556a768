"""What `variants` checks and times: the forms of one kernel, the library beside them, and the truth."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial

import torch

Results = dict[str, torch.Tensor]
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What is computed, by whom: `forms` are tried beside `peer`; results that the truth names are compared.

    `peer` makes its call ready; `kept` are results that the forms write again and again: they are poisoned before each check. `flops` and
    `bytes` of one call say how far a time is from the card's limits. `graph`: calls are timed as a replayed CUDA graph, for kernels that
    run shorter than Python takes to launch them.
    """

    forms: dict[str, Callable[[], Results]]
    peer_name: str
    peer: Callable[[], Callable[[], Results]]
    truth: Callable[[], Results]
    flops: float
    bytes: float
    kept: tuple[torch.Tensor, ...] = ()
    graph: bool = False


def label(launch: object) -> str:
    """The launch's values, without those that are not set."""
    return " ".join(f"{key}={value}" for key, value in asdict(launch).items() if value not in (False, None, 0))  # type: ignore[call-overload]


def forms(launches: Iterable[object], run: Callable[..., Results]) -> dict[str, Callable[[], Results]]:
    """`run` with each launch, by the launch's label."""
    return {label(launch): partial(run, launch) for launch in launches}


def forward_case(
    launches: Iterable[object],
    run: Callable[..., torch.Tensor],
    function: Callable[..., torch.Tensor],
    inputs: Inputs,
    moved: float,
) -> Case:
    """`run(launch)` beside `function` of the inputs in plain PyTorch; `moved`: bytes."""

    def plain(dtype: torch.dtype | None) -> Results:
        return {"out": function(*(tensor.to(dtype) for tensor in inputs.values()))}

    tried = forms(launches, lambda launch: {"out": run(launch)})
    return Case(tried, "torch", lambda: partial(plain, None), lambda: plain(torch.float32), 0.0, moved)


def backward_case(
    launches: Iterable[object],
    run: Callable[..., Iterable[torch.Tensor]],
    function: Callable[..., object],
    inputs: Inputs,
    upstream: list[torch.Tensor],
    moved: float,
) -> Case:
    """`run(launch)`, the inputs' gradients in their order, beside those of `function` by autograd."""
    tried = forms(launches, lambda launch: dict(zip(inputs, run(launch))))
    plain = partial(_gradients, function, inputs, upstream)
    return Case(tried, "torch", lambda: plain(None), lambda: plain(torch.float32)(), 0.0, moved)


def _gradients(
    function: Callable[..., object], inputs: Inputs, upstream: list[torch.Tensor], dtype: torch.dtype | None
) -> Callable[[], Results]:
    """The backward pass alone of plain PyTorch in `dtype` (None: the inputs' own), ready to run: the gradient of each input by its name."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs.values()]
    outputs = function(*leaves)
    grads = [grad.detach().to(dtype) for grad in upstream]
    return lambda: dict(zip(inputs, torch.autograd.grad(outputs, leaves, grads, retain_graph=True)))
