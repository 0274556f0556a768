"""Attention inside packed documents in plain PyTorch: backend "torch", and in float64 the truth the kernel is tested against.

A query sees the keys of its own document from the document's first frame up to its own frame, or up to the end of the document's
bidirectional prefix where that lies further.
"""

import torch
import torch.nn.functional as F

QUERIES_A_CALL = 1_024  # bounds the mask, and the scores where SDPA has no fused kernel, to (B, N, 1024, T)


def row_limits(document_starts_BD: torch.Tensor, prefix_lengths_BD: torch.Tensor | None, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First key and end of the keys (exclusive) of each query, both (B, T) int32.

    Frames before the first start form a document of their own, without a prefix.
    """
    positions_T = torch.arange(frames, device=document_starts_BD.device, dtype=torch.int32)
    positions_BT = positions_T.expand(document_starts_BD.shape[0], frames).contiguous()
    starts_BD = document_starts_BD.to(torch.int32).contiguous()
    document_BT = torch.searchsorted(starts_BD, positions_BT, right=True) - 1
    inside_BT = document_BT >= 0
    document_BT = document_BT.clamp(min=0)
    first_BT = torch.where(inside_BT, starts_BD.gather(1, document_BT), 0)
    end_BT = positions_BT + 1
    if prefix_lengths_BD is not None:
        prefix_end_BT = first_BT + prefix_lengths_BD.to(torch.int32).gather(1, document_BT)
        next_start_BD = F.pad(starts_BD[:, 1:], (0, 1), value=frames)
        prefix_end_BT = torch.minimum(prefix_end_BT, next_start_BD.gather(1, document_BT))
        end_BT = torch.where(inside_BT, torch.maximum(end_BT, prefix_end_BT), end_BT)
    return first_BT, end_BT.to(torch.int32)


def query_key_value(qkv_BTN3H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, each (B, N, T, H); a key and value shared by several queries are repeated."""
    shared = qkv_BTN3H.shape[3] - 2
    queries, key, value = qkv_BTN3H.permute(0, 2, 3, 1, 4).split((shared, 1, 1), dim=2)
    return queries.flatten(1, 2), key.expand_as(queries).flatten(1, 2), value.expand_as(queries).flatten(1, 2)


def varlen_attention(
    qkv_BTN3H: torch.Tensor, document_starts_BD: torch.Tensor, prefix_lengths_BD: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, T, N*H) by scaled_dot_product_attention under a mask, a slice of queries at a time."""
    batch, frames, groups, parts, head_dim = qkv_BTN3H.shape
    heads = groups * (parts - 2)
    first_BT, end_BT = row_limits(document_starts_BD, prefix_lengths_BD, frames)
    keys_T = torch.arange(frames, device=qkv_BTN3H.device)
    query, key, value = query_key_value(qkv_BTN3H)
    outputs = []
    for begin in range(0, frames, QUERIES_A_CALL):
        rows = slice(begin, min(begin + QUERIES_A_CALL, frames))
        mask_BQT = (keys_T >= first_BT[:, rows, None]) & (keys_T < end_BT[:, rows, None])
        out = F.scaled_dot_product_attention(query[:, :, rows], key, value, attn_mask=mask_BQT[:, None])
        outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, dim=1).reshape(batch, frames, heads * head_dim)
