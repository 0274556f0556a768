"""rotary in plain PyTorch."""

from functools import cache

import torch

BASE = 10_000.0


@cache
def turns(width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(H / 2,): the angle of a pair at position 1. Kept, so that both paths multiply positions by the same numbers."""
    with torch.inference_mode(False):  # a tensor made inside could not take part in a training behind it
        exponents = -torch.arange(0, width, 2, dtype=torch.float64) / width
        return (BASE**exponents).to(device=device, dtype=dtype)


def rotate(packed_XN3H: torch.Tensor, positions_X: torch.Tensor) -> torch.Tensor:
    """See interface.rotate."""
    wide = torch.promote_types(packed_XN3H.dtype, torch.float32)
    turns_P = turns(packed_XN3H.shape[-1], packed_XN3H.device, wide)
    angles = (positions_X.to(wide)[:, None] * turns_P)[:, None, None, :]
    cos, sin = angles.cos(), angles.sin()
    low, high = packed_XN3H[:, :, :2].to(wide).chunk(2, dim=-1)
    turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
    return torch.cat((turned.to(packed_XN3H.dtype), packed_XN3H[:, :, 2:]), dim=2)
