"""decode_attention: one new frame of each sequence against the keys and values that its cache holds, and itself.

B rows, N heads, S slots of the cache, H head width. Owns the checks and the choice of path; no gradient.
"""

import torch

from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_device, check_float, check_integer, check_shape, fault
from uniaudio.kernels.decode_attention import reference

OP = "decode_attention"
MAX_HEAD_DIM = 256


def decode_attention(
    qkv_BN3H: torch.Tensor,
    keys_BNSH: torch.Tensor,
    values_BNSH: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    early: bool = False,
    backend: Backend,
) -> torch.Tensor:
    """Writes the new key and value of row b into slot lengths[b], and attends to the slots 0..lengths[b]: (B, N * H).

    qkv_BN3H: (B, N, 3, H), the packed projection of one frame a row, contiguous, H <= 256 and a multiple of 8. The caches are contiguous
    and changed in place. lengths_B: int32 or int64, each below S; a length outside its cache raises IndexError on the torch path, the
    Triton path, which cannot see it without stalling the stream, takes the nearest slot. Raises ValueError on any other input. A row's
    result does not depend on the number of rows. early: a GPU may read lengths and filled slots while the launch before this one still
    runs (`kernels.early`): only an ordinary launch since then, or none, has written them.
    """
    check_shape(OP, "qkv_BN3H", qkv_BN3H, (None, None, 3, None))
    check_backend(OP, backend, qkv_BN3H)
    check_float(OP, backend, qkv_BN3H=qkv_BN3H, keys_BNSH=keys_BNSH, values_BNSH=values_BNSH)
    check_device(OP, qkv_BN3H=qkv_BN3H, keys_BNSH=keys_BNSH, values_BNSH=values_BNSH, lengths_B=lengths_B)
    check_integer(OP, (torch.int32, torch.int64), lengths_B=lengths_B)
    check_contiguous(OP, qkv_BN3H=qkv_BN3H, keys_BNSH=keys_BNSH, values_BNSH=values_BNSH, lengths_B=lengths_B)
    rows, heads, _, head_dim = qkv_BN3H.shape
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise fault(OP, "head dimension", seen=head_dim, allowed=f"a multiple of 8, up to {MAX_HEAD_DIM}")
    check_shape(OP, "keys_BNSH", keys_BNSH, (rows, heads, None, head_dim))
    check_shape(OP, "values_BNSH", values_BNSH, tuple(keys_BNSH.shape))
    check_shape(OP, "lengths_B", lengths_B, (rows,))
    if keys_BNSH.shape[2] == 0:
        raise fault(OP, "slots of the cache", seen=0, allowed="1 or more")
    if backend == "torch":
        return reference.decode_attention(qkv_BN3H, keys_BNSH, values_BNSH, lengths_B)
    from uniaudio.kernels.decode_attention.triton_kernels import decode_attention as launch  # here: the torch path works without Triton
    from uniaudio.kernels.early import starts_early

    return launch(qkv_BN3H, keys_BNSH, values_BNSH, lengths_B, early and starts_early(qkv_BN3H.device))
