"""Input checks shared by every op: a wrong tensor is a ValueError that names it before any kernel is launched.

Owns the checks and the two names of a backend; owns no mathematics. Every fault is a ValueError: what was wrong, the value seen, the
values allowed.
"""

import os
from typing import Literal, get_args

import torch

Backend = Literal["torch", "triton"]
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def fault(op: str, what: str, *, seen: object, allowed: object) -> ValueError:
    """The one form of a kernel's error message."""
    return ValueError(f"{op}: {what} | seen: {seen} | allowed: {allowed}")


def interpreted() -> bool:
    """Whether Triton runs its kernels in the interpreter on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def check_backend(op: str, backend: str, tensor: torch.Tensor, *, more: tuple[str, ...] = ()) -> None:
    """The backend is one of the two, and can run where `tensor` is; `more` are the op's own others, checked by the op."""
    if backend not in get_args(Backend):
        raise fault(op, "unknown backend", seen=backend, allowed=", ".join((*get_args(Backend), *more)))
    if backend == "triton" and not tensor.is_cuda and not interpreted():
        raise fault(op, "backend triton needs CUDA tensors", seen=tensor.device, allowed="cuda (or TRITON_INTERPRET=1 on the CPU)")


def check_float(op: str, backend: str, **tensors: torch.Tensor | None) -> None:
    """All floating tensors have one dtype, which the backend knows (the torch path also takes float64, as the exact reference)."""
    allowed = FLOAT_DTYPES if backend == "triton" else (*FLOAT_DTYPES, torch.float64)
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first_name, first = next(iter(present.items()))
    for name, tensor in present.items():
        if tensor.dtype not in allowed:
            raise fault(op, f"dtype of {name}", seen=tensor.dtype, allowed=", ".join(map(str, allowed)))
        if tensor.dtype != first.dtype:
            raise fault(op, f"dtype of {name} differs from {first_name}'s", seen=tensor.dtype, allowed=first.dtype)


def check_integer(op: str, dtypes: tuple[torch.dtype, ...], **tensors: torch.Tensor | None) -> None:
    """Index tensors have one of `dtypes`."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in dtypes:
            raise fault(op, f"dtype of {name}", seen=tensor.dtype, allowed=", ".join(map(str, dtypes)))


def check_device(op: str, **tensors: torch.Tensor | None) -> None:
    """All tensors lie on one device."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first_name, first = next(iter(present.items()))
    for name, tensor in present.items():
        if tensor.device != first.device:
            raise fault(op, f"device of {name} differs from {first_name}'s", seen=tensor.device, allowed=first.device)


def check_contiguous(op: str, **tensors: torch.Tensor | None) -> None:
    """The tensors are dense in row-major order: the kernels read them in place and copy nothing behind the caller's back."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise fault(op, f"stride of {name} of shape {tuple(tensor.shape)}", seen=tensor.stride(), allowed="contiguous")


def check_shape(op: str, name: str, tensor: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    """`tensor` has this shape; None stands for any size."""
    fits = tensor.dim() == len(shape) and all(want is None or want == have for want, have in zip(shape, tensor.shape))
    if not fits:
        allowed = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        raise fault(op, f"shape of {name}", seen=tuple(tensor.shape), allowed=allowed)
