"""The schedule and AdamW: which parameters decay, and the learning rate as a pure function of the step.

Owns nothing that must be saved: the schedule has no state, and the moments are the engine's.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from uniaudio.configs.optim import OptimConfig
from uniaudio.pretrain.parallel.tensor import is_cut


def learning_rate(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Rate of the update that makes step `step` (1 is the first) of a run of `total_steps`.

    Linear warm-up to `optim.lr`, then constant, or down to `lr * min_lr_ratio` at the last step by a half cosine or a line. A run
    shorter than its warm-up stays in the warm-up.
    """
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = min(1.0, (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps))
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if optim.schedule == "cosine" else 1.0 - progress
    return optim.lr * (optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * share)


TABLES = ("embed.code", "embed.position", "link.code", "link.level")  # looked up by index


def decays(name: str, parameter: torch.Tensor) -> bool:
    """True for the matrices of projections; False for biases, norms, and tables that are looked up by index."""
    return parameter.ndim >= 2 and name.removesuffix(".weight") not in TABLES


def make_optimizer(
    optim: OptimConfig, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], *, cut_apart: bool = False
) -> torch.optim.AdamW:
    """torch's fused AdamW over two groups, decayed and not, each in the order given.

    cut_apart: over four, those cut over tensor-parallel ranks apart from the others. Not where the step is DeepSpeed's own, which counts on
    as many groups in every stage of a pipeline.

    The rate starts at 0: the engine sets it before each step.
    """
    sorts: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {(decayed, cut): [] for decayed in (True, False) for cut in (True, False)}
    for name, parameter in named_parameters:
        sorts[decays(name, parameter), cut_apart and is_cut(parameter)].append(parameter)
    groups = [
        {"params": parameters, "weight_decay": optim.weight_decay if decayed else 0.0}
        for (decayed, _), parameters in sorts.items()
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=True)


@contextmanager
def host_threads(count: int) -> Iterator[None]:
    """So many threads for what torch does on the CPU meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gradient_norm(gradients: Iterable[torch.Tensor], group: "torch.distributed.ProcessGroup | None") -> torch.Tensor:
    """L2 norm of all gradients as one vector, fp32 scalar; `group` holds the other shares of the model.

    A gradient that several processes of `group` hold must be given by one of them only.
    """
    squares = [gradient.detach().float().square().sum() for gradient in gradients]
    total = torch.stack(squares).sum() if squares else torch.zeros(())
    if group is not None:
        torch.distributed.all_reduce(total, group=group)
    return total.sqrt()
