"""Frame attention in plain PyTorch: the path of backend "torch", and in float64 the truth that the kernel is tested against."""

import torch
import torch.nn.functional as F

# SDPA's flash and memory-efficient kernels put the batch on a grid axis of 65,535 blocks and fail beyond it (pytorch issue 142228).
FRAMES_A_CALL = 32_768


def frame_attention(qkv_XLN3H: torch.Tensor) -> torch.Tensor:
    """Causal attention inside each frame, (X, L, N*H), by scaled_dot_product_attention over slices of frames."""
    frames, codes, heads, _, head_dim = qkv_XLN3H.shape
    outputs = []
    for qkv in qkv_XLN3H.split(FRAMES_A_CALL):
        query, key, value = qkv.permute(3, 0, 2, 1, 4)
        outputs.append(F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2))
    return torch.cat(outputs).reshape(frames, codes, heads * head_dim)
