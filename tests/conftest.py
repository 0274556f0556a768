"""Settings that must stand before any test imports Triton."""

import os

import torch

# Without a GPU, Triton's kernels run in its interpreter; the choice is read when Triton is first imported (deepspeed imports it too).
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
