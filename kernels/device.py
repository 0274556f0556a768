"""What the launches ask of a device."""

from functools import cache

import torch


@cache
def streaming_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; in the interpreter 2, so that its tests reach the loops over several tiles a program."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
