"""A stand-in for CUDA graphs on the CPU: what torch computes while a graph is captured is written down, and done again on the same memory.

Like the real ones it freezes every decision that Python took, and refuses to let the host look at a value.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from uniaudio.kernels.varlen_attention import interface

LOOKS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.nonzero.default}


class Recorded(TorchDispatchMode):
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in LOOKS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def reset(self) -> None:
        """Nothing is held any more."""
        self.calls.clear()

    @torch.no_grad()
    def replay(self) -> None:
        """Every call again; its results go where they were."""
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for work in tree_leaves(again):
                if isinstance(work, torch.ScriptObject):  # of a collective: graphs wait by events
                    work.wait()
            for before, now in zip(tree_leaves(result), tree_leaves(again)):
                if isinstance(before, torch.Tensor) and before.data_ptr() != now.data_ptr():
                    before.detach().copy_(now)


@contextmanager
def _capture(graph: Recorded, **_: object):
    with graph:
        yield


def stand_in(replace: Callable[[object, str, object], object] = setattr) -> None:
    """torch.cuda's graphs become recorded calls; boundaries are not looked at, as on a GPU. `replace`: setattr in a process of its own,
    else monkeypatch's."""
    for owner, name, value in (
        (torch.cuda, "CUDAGraph", Recorded),
        (torch.cuda, "graph", _capture),
        (torch.cuda, "graph_pool_handle", lambda: None),
        (interface, "_check_boundaries", lambda *_: None),
    ):
        replace(owner, name, value)
