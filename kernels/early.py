"""Programmatic dependent launch: a kernel that starts while the launch before it ends, and waits for that end where it must.

What such a kernel reads before `end_of_the_launch_before` must not be written by launches that may still run: weights are safe, and
whatever an ordinary launch, which waits for all before it, has come after.
"""

from functools import cache

import torch
import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@cache
def starts_early(device: torch.device) -> bool:
    """Whether the device can: CUDA from compute capability 9.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def end_of_the_launch_before() -> None:
    """Lets the next launch start, and waits until all before this one have ended and what they wrote is seen."""
    gdc_launch_dependents()
    gdc_wait()
