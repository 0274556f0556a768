"""Other libraries' attention behind varlen_attention: torch's varlen kernel, cuDNN through SDPA, the flash-attn package.

Each is chosen by name; where one is missing or cannot do what is asked, that is an error with the remedy. None knows a bidirectional
prefix. B rows, T frames, G groups of R query heads that share a key and a value, D documents a row at most.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from uniaudio.kernels.checks import fault
from uniaudio.kernels.varlen_attention.reference import query_key_value

OP = "varlen_attention"
Peer = Literal["torch_varlen", "cudnn", "flash_attn"]
PEERS = get_args(Peer)
HALF = (torch.float16, torch.bfloat16)


def offsets(document_starts_BD: torch.Tensor, frames: int) -> torch.Tensor:
    """(B * D + 1,) int32: first of all B * T frames of each document, then B * T; an unused entry is a document of no frames."""
    rows = document_starts_BD.shape[0]
    first = torch.arange(rows, device=document_starts_BD.device, dtype=torch.int32)[:, None] * frames
    return F.pad((first + document_starts_BD.to(torch.int32)).flatten(), (0, 1), value=rows * frames)


def packed_attention(qkv_BTN3H: torch.Tensor, document_starts_BD: torch.Tensor, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Calls attend(q, k, v, offsets, longest) with q (B*T, N, H), k and v (B*T, G, H); the longest document is taken to be T, as its
    true length would stall the stream."""
    batch, frames, groups, parts, head_dim = qkv_BTN3H.shape
    queries, key, value = qkv_BTN3H.flatten(0, 1).split((parts - 2, 1, 1), dim=2)
    out = attend(
        queries.reshape(-1, groups * (parts - 2), head_dim), key.squeeze(2), value.squeeze(2), offsets(document_starts_BD, frames), frames
    )
    return out.reshape(batch, frames, -1)


def _torch_varlen(qkv_BTN3H: torch.Tensor, document_starts_BD: torch.Tensor) -> torch.Tensor:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise fault(OP, "backend torch_varlen", seen=f"torch {torch.__version__}", allowed="torch 2.11 or newer") from error
    shared = qkv_BTN3H.shape[3] - 2

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int) -> torch.Tensor:
        if shared > 1:  # torch 2.11 cannot share a key among queries
            k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        return varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0))

    return packed_attention(qkv_BTN3H, document_starts_BD, attend)


def _flash_attn(qkv_BTN3H: torch.Tensor, document_starts_BD: torch.Tensor) -> torch.Tensor:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise fault(OP, "backend flash_attn", seen="no package flash-attn", allowed="pip install flash-attn, or another backend") from error
    return packed_attention(
        qkv_BTN3H,
        document_starts_BD,
        lambda q, k, v, ends, longest: flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, causal=True),
    )


def _cudnn(qkv_BTN3H: torch.Tensor, document_starts_BD: torch.Tensor) -> torch.Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if document_starts_BD.shape[1] != 1:
        raise fault(OP, "documents a row with backend cudnn", seen=document_starts_BD.shape[1], allowed="1: it knows no boundaries")
    query, key, value = query_key_value(qkv_BTN3H)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return out.transpose(1, 2).flatten(2)


RUN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "torch_varlen": _torch_varlen,
    "cudnn": _cudnn,
    "flash_attn": _flash_attn,
}


def check_peer(backend: str, qkv_BTN3H: torch.Tensor, prefix_lengths_BD: torch.Tensor | None) -> None:
    """What none of them can do is refused before any launch."""
    if prefix_lengths_BD is not None:
        raise fault(
            OP,
            f"bidirectional prefixes with backend {backend}",
            seen="prefix_lengths_BD",
            allowed="backend triton or torch",
        )
    if qkv_BTN3H.dtype not in HALF:
        raise fault(OP, f"dtype of qkv_BTN3H with backend {backend}", seen=qkv_BTN3H.dtype, allowed=", ".join(map(str, HALF)))
    if not qkv_BTN3H.is_cuda:
        raise fault(OP, f"backend {backend} needs CUDA tensors", seen=qkv_BTN3H.device, allowed="cuda")
