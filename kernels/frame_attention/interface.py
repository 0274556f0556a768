"""frame_attention: causal attention among the few codes of one frame, the local Transformer's attention (paper, section Model).

X frames, L codes a frame, N heads, H head width. Owns the checks and the choice of path; the mathematics is in reference.py (torch) and
triton_kernels.py.
"""

import torch

from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_float, check_shape, fault
from uniaudio.kernels.frame_attention import reference

OP = "frame_attention"
MAX_CODES = 32
MAX_HEAD_DIM = 256


def frame_attention(qkv_XLN3H: torch.Tensor, *, backend: Backend) -> torch.Tensor:
    """Causal attention inside each frame: out[x, l] = softmax(q[x, l] . k[x, :l + 1] / sqrt(H)) v[x, :l + 1], a head at a time.

    qkv_XLN3H: (X, L, N, 3, H), the packed projection as it comes out of the product, contiguous, any X, L <= 32, H <= 256 and a
    multiple of 8. Returns (X, L, N * H), as the output projection reads it. Differentiable. Raises ValueError on any other input.
    """
    check_shape(OP, "qkv_XLN3H", qkv_XLN3H, (None, None, None, 3, None))
    check_backend(OP, backend, qkv_XLN3H)
    check_float(OP, backend, qkv_XLN3H=qkv_XLN3H)
    check_contiguous(OP, qkv_XLN3H=qkv_XLN3H)
    _, codes, _, _, head_dim = qkv_XLN3H.shape
    if not 1 <= codes <= MAX_CODES:
        raise fault(OP, "codes a frame", seen=codes, allowed=f"1 to {MAX_CODES}")
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise fault(OP, "head dimension", seen=head_dim, allowed=f"a multiple of 8, up to {MAX_HEAD_DIM}")
    if backend == "torch":
        return reference.frame_attention(qkv_XLN3H)
    from uniaudio.kernels.frame_attention.triton_kernels import FrameAttention  # here: the torch path works without Triton

    return FrameAttention.apply(qkv_XLN3H)
