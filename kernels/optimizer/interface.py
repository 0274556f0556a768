"""optimizer: what lies between the backward pass and the next forward one, in as few passes over memory as there can be.

Owns the checks, the choice of path, and where each gradient belongs in the flat tensors. A step is `square_sum` (2 bytes a bf16 gradient
read), a scalar made of it, and `adamw_step`, which reads gradient, master and moments and writes master, moments and the low-precision
weights: 28 bytes a parameter. Gradients stay where the backward pass left them; only their addresses are told.
"""

from collections.abc import Sequence

import torch

from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_device, fault
from uniaudio.kernels.optimizer import reference
from uniaudio.kernels.optimizer.reference import AdamW


class Segments:
    """Where gradients belong in a flat tensor: gradient i covers [starts[i], starts[i] + counts[i]).

    Holds what the kernels need to know of it on the device, made once; the gradients' addresses, which change from step to step, are
    uploaded where they differ from the last ones.
    """

    def __init__(self, starts: Sequence[int], counts: Sequence[int]) -> None:
        self.starts, self.counts = list(starts), list(counts)
        if len(self.starts) != len(self.counts) or any(count < 1 for count in self.counts):
            raise fault(
                "optimizer", "segments", seen=f"{len(self.starts)} starts, counts {self.counts[:4]}...", allowed="as many, each >= 1"
            )
        self.aligned = all(number % 8 == 0 for number in self.starts + self.counts)
        self.end = max((start + count for start, count in zip(self.starts, self.counts)), default=0)
        self.cache: dict[str, torch.Tensor] = {}
        self.addresses: list[int] = []


def square_sum(segments: Segments, gradients: Sequence[torch.Tensor], *, backend: Backend) -> torch.Tensor:
    """Sum of squares of all gradients (one dtype), float32 scalar, the same bits on every call."""
    listed = _check("square_sum", segments, gradients, None, backend)
    if backend == "torch":
        return reference.square_sum(listed)
    from uniaudio.kernels.optimizer import triton_kernels

    return triton_kernels.square_sum(segments, listed)


def accumulate(total: torch.Tensor, segments: Segments, gradients: Sequence[torch.Tensor], *, first: bool, backend: Backend) -> None:
    """total (flat, float32) takes (`first`) or adds the gradients, each at its place."""
    listed = _check("accumulate", segments, gradients, total, backend)
    if backend == "torch":
        reference.accumulate(total, segments.starts, listed, first=first)
    else:
        from uniaudio.kernels.optimizer import triton_kernels

        triton_kernels.accumulate(total, segments, listed, first=first)


def adamw_step(
    master: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    weights: torch.Tensor | None,
    *,
    segments: Segments,
    gradients: Sequence[torch.Tensor],
    scale: torch.Tensor,
    settings: AdamW,
    backend: Backend,
) -> None:
    """One AdamW update in place of flat float32 `master` and its moments, with gradients times `scale`; `weights` takes master's cast.

    scale: float32 scalar on the device; where it is not above 0 (a norm that was not finite) nothing changes at all.

    Raises:
        ValueError: wrong dtype, device, shape or stride.
    """
    op = "adamw_step"
    listed = _check(op, segments, gradients, master, backend)
    check_device(op, master=master, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, weights=weights, scale=scale)
    check_contiguous(op, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, weights=weights)
    for name, tensor in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("weights", weights)):
        if tensor is not None and tensor.shape != master.shape:
            raise fault(op, f"shape of {name}", seen=tuple(tensor.shape), allowed=tuple(master.shape))
        if tensor is not None and name != "weights" and tensor.dtype != torch.float32:
            raise fault(op, f"dtype of {name}", seen=tensor.dtype, allowed="torch.float32")
    tensors = (master, exp_avg, exp_avg_sq, weights)
    if backend == "torch":
        reference.adamw_step(tensors, segments.starts, listed, scale, settings)
    else:
        from uniaudio.kernels.optimizer import triton_kernels

        triton_kernels.adamw_step(tensors, segments, listed, scale, settings)


def _check(
    op: str, segments: Segments, gradients: Sequence[torch.Tensor], flat: torch.Tensor | None, backend: Backend
) -> list[torch.Tensor]:
    """The gradients as a list, when they are what the segments say; `flat` is float32, contiguous and long enough.

    Hundreds of gradients, several times a step: what costs the host time here holds up small models.
    """
    listed = list(gradients)
    counts = [gradient.numel() for gradient in listed]
    if counts != segments.counts:
        raise fault(op, "elements of the gradients", seen=counts[:4], allowed=segments.counts[:4])
    check_backend(op, backend, listed[0])
    dtype = listed[0].dtype
    for index, gradient in enumerate(listed):
        if not gradient.is_contiguous():
            check_contiguous(op, **{f"gradient {index}": gradient})
        if gradient.dtype != dtype or not dtype.is_floating_point:
            raise fault(op, f"dtype of gradient {index}", seen=gradient.dtype, allowed=dtype)
    if flat is not None:
        check_device(op, flat=flat, gradient=listed[0])
        check_contiguous(op, flat=flat)
        if flat.dtype != torch.float32 or flat.dim() != 1 or flat.numel() < segments.end:
            raise fault(op, "flat tensor", seen=f"{tuple(flat.shape)} {flat.dtype}", allowed=f"({segments.end} or more,) torch.float32")
    return listed
