"""Numbers of 8 bits (e4m3): their range. Without Triton, for the plain paths too."""

import torch

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST_SCALE = 1e-12  # of a tensor of zeros
