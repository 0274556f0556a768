"""Attention of one new frame a row over its cache in plain PyTorch: backend "torch", and in float64 the truth of the tests."""

import torch
import torch.nn.functional as F


def decode_attention(qkv_BN3H: torch.Tensor, keys_BNSH: torch.Tensor, values_BNSH: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """(B, N*H) by scaled_dot_product_attention over the slots that any row has filled; changes the caches in place."""
    query, key, value = qkv_BN3H.unbind(dim=2)
    index = torch.arange(len(lengths_B), device=lengths_B.device)
    keys_BNSH[index, :, lengths_B] = key
    values_BNSH[index, :, lengths_B] = value
    longest = int(lengths_B.max()) + 1 if len(lengths_B) else 0
    seen_BS = torch.arange(longest, device=lengths_B.device) <= lengths_B[:, None]
    out = F.scaled_dot_product_attention(
        query.unsqueeze(2), keys_BNSH[:, :, :longest], values_BNSH[:, :, :longest], attn_mask=seen_BS[:, None, None]
    )
    return out.flatten(1)
