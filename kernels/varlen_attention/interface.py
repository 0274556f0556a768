"""varlen_attention: attention inside the documents packed in each row, the global Transformer's attention.

B rows, T frames a row, N heads, H head width, D documents a row at most. Owns the checks and the choice of path.
"""

import torch

from uniaudio.kernels.checks import (
    Backend,
    check_backend,
    check_contiguous,
    check_device,
    check_float,
    check_integer,
    check_shape,
    fault,
)
from uniaudio.kernels.varlen_attention import reference
from uniaudio.kernels.varlen_attention.peers import OP, PEERS, RUN, Peer, check_peer

MAX_HEAD_DIM = 256


def varlen_attention(
    qkv_BTN3H: torch.Tensor,
    document_starts_BD: torch.Tensor,
    prefix_lengths_BD: torch.Tensor | None = None,
    *,
    backend: Backend | Peer,
) -> torch.Tensor:
    """Attention of each frame to its own document: causal, and in both directions among the document's first prefix frames.

    qkv_BTN3H: (B, T, N, 3, H) packed projection, contiguous, H <= 256 and a multiple of 8; (B, T, G, R + 2, H) where R heads of queries
    share a key and a value, N = G * R.
    document_starts_BD: (B, D) int32 or int64, first frame of each document, ascending from 0; unused entries hold T.
    prefix_lengths_BD: (B, D), frames at the start of each document that all its frames see; None: none.
    backend: triton or torch, or a library by its name, which knows no prefix: torch_varlen, flash_attn, cudnn (one document a row).
    Returns (B, T, N * H). Differentiable. Raises ValueError on any other input; the values of the boundary tensor are checked where
    it lies on the CPU (on a GPU that would stall the stream; the kernels stay inside the row whatever it holds).
    """
    check_shape(OP, "qkv_BTN3H", qkv_BTN3H, (None, None, None, None, None))
    if qkv_BTN3H.shape[3] < 3:
        raise fault(OP, "shape of qkv_BTN3H", seen=tuple(qkv_BTN3H.shape), allowed="(B, T, N, 3, H) or (B, T, G, R + 2, H)")
    if backend in PEERS:
        check_peer(backend, qkv_BTN3H, prefix_lengths_BD)
    else:
        check_backend(OP, backend, qkv_BTN3H, more=PEERS)
        check_float(OP, backend, qkv_BTN3H=qkv_BTN3H)
    check_contiguous(OP, qkv_BTN3H=qkv_BTN3H)
    batch, frames, _, _, head_dim = qkv_BTN3H.shape
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise fault(OP, "head dimension", seen=head_dim, allowed=f"a multiple of 8, up to {MAX_HEAD_DIM}")
    check_shape(OP, "document_starts_BD", document_starts_BD, (batch, None))
    if prefix_lengths_BD is not None:
        check_shape(OP, "prefix_lengths_BD", prefix_lengths_BD, tuple(document_starts_BD.shape))
    check_device(OP, qkv_BTN3H=qkv_BTN3H, document_starts_BD=document_starts_BD, prefix_lengths_BD=prefix_lengths_BD)
    check_integer(OP, (torch.int32, torch.int64), document_starts_BD=document_starts_BD, prefix_lengths_BD=prefix_lengths_BD)
    if not document_starts_BD.is_cuda:
        _check_boundaries(document_starts_BD, prefix_lengths_BD, frames)
    if backend in PEERS:
        return RUN[backend](qkv_BTN3H, document_starts_BD)
    if backend == "torch":
        return reference.varlen_attention(qkv_BTN3H, document_starts_BD, prefix_lengths_BD)
    from uniaudio.kernels.varlen_attention.autograd import VarlenAttention  # here: the torch path works without Triton

    return VarlenAttention.apply(qkv_BTN3H, document_starts_BD, prefix_lengths_BD)


def _check_boundaries(document_starts_BD: torch.Tensor, prefix_lengths_BD: torch.Tensor | None, frames: int) -> None:
    if document_starts_BD.shape[1] == 0 or bool((document_starts_BD[:, 0] != 0).any()):
        raise fault(OP, "first document of a row", seen=document_starts_BD[:, :1].flatten().tolist(), allowed="starts at frame 0")
    steps = document_starts_BD.diff(dim=1)
    bad = (steps < 0) | ((steps == 0) & (document_starts_BD[:, 1:] != frames))
    if bool(bad.any()) or bool((document_starts_BD > frames).any()):
        row = int((bad.any(1) | (document_starts_BD > frames).any(1)).nonzero()[0])
        raise fault(OP, f"document_starts_BD of row {row}", seen=document_starts_BD[row].tolist(), allowed=f"ascending, unused {frames}")
    if prefix_lengths_BD is not None and bool((prefix_lengths_BD < 0).any()):
        raise fault(OP, "prefix_lengths_BD", seen=int(prefix_lengths_BD.min()), allowed="0 or more")
