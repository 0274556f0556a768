"""fp8 rows and their product in plain PyTorch: what the kernel and the tensor cores must equal, and the path of the CPU."""

import torch

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST_SCALE = 1e-12  # of a row of zeros


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (R, K) -> (e4m3 (R, K), float32 scales (R, 1)): x is about values times scale; each row's largest value becomes 448."""
    values = x.float()
    scales = (values.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=LEAST_SCALE)
    return (values / scales).clamp(-LARGEST, LARGEST).to(FP8), scales


def scaled_product(
    a_RK: torch.Tensor, a_scales: torch.Tensor, b_NK: torch.Tensor, b_scales: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """(R, N) = (a scales_a) (b scales_b)^T, summed in float32, in `dtype`."""
    return ((a_RK.float() @ b_NK.float().t()) * a_scales * b_scales.t()).to(dtype)
