"""rotary in plain PyTorch."""

import torch

BASE = 10_000.0


def rotate(packed_XN3H: torch.Tensor, positions_X: torch.Tensor) -> torch.Tensor:
    """See interface.rotate."""
    wide = torch.promote_types(packed_XN3H.dtype, torch.float32)
    width = packed_XN3H.shape[-1]
    turns_H2 = BASE ** (-torch.arange(0, width, 2, device=packed_XN3H.device, dtype=wide) / width)
    angles = (positions_X.to(wide)[:, None] * turns_H2)[:, None, None, :]
    cos, sin = angles.cos(), angles.sin()
    low, high = packed_XN3H[:, :, :2].to(wide).chunk(2, dim=-1)
    turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
    return torch.cat((turned.to(packed_XN3H.dtype), packed_XN3H[:, :, 2:]), dim=2)
