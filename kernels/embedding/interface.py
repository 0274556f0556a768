"""frame_embedding: one vector a frame from its Q codes, and its learned position, in one pass.

X frames, Q codes a frame, V rows of the code table of width E, P rows of the position table, D = E (sum) or Q*E (concat).
"""

from typing import Literal

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
from uniaudio.kernels.embedding import reference

OP = "frame_embedding"
INTEGERS = (torch.int32, torch.int64)


def frame_embedding(
    codes_XQ: torch.Tensor,
    table_VE: torch.Tensor,
    positions_X: torch.Tensor | None = None,
    position_table_PD: torch.Tensor | None = None,
    *,
    mode: Literal["sum", "concat"],
    backend: Backend,
) -> torch.Tensor:
    """(X, D): the code vectors of each frame summed (the paper) or side by side (the released code), plus its position's vector.

    codes_XQ (X, Q) and positions_X (X,) are int32 or int64 ids; positions_X and position_table_PD come together or not at all.
    Differentiable in both tables; the gradient is deterministic. An id outside its table raises IndexError on the torch path; the
    Triton path, which cannot see ids without stalling the stream, reads nothing there and makes that frame's vector NaN.
    """
    check_shape(OP, "codes_XQ", codes_XQ, (None, None))
    check_shape(OP, "table_VE", table_VE, (None, None))
    check_backend(OP, backend, table_VE)
    if mode not in ("sum", "concat"):
        raise fault(OP, "mode", seen=mode, allowed="sum, concat")
    if (positions_X is None) != (position_table_PD is None):
        raise fault(OP, "positions", seen="one of positions_X, position_table_PD", allowed="both or none")
    check_integer(OP, INTEGERS, codes_XQ=codes_XQ, positions_X=positions_X)
    check_float(OP, backend, table_VE=table_VE, position_table_PD=position_table_PD)
    check_device(OP, table_VE=table_VE, codes_XQ=codes_XQ, positions_X=positions_X, position_table_PD=position_table_PD)
    if positions_X is not None and position_table_PD is not None:
        width = table_VE.shape[1] * (codes_XQ.shape[1] if mode == "concat" else 1)
        check_shape(OP, "positions_X", positions_X, (codes_XQ.shape[0],))
        check_shape(OP, "position_table_PD", position_table_PD, (None, width))
    check_contiguous(OP, codes_XQ=codes_XQ, table_VE=table_VE, positions_X=positions_X, position_table_PD=position_table_PD)
    if backend == "torch":
        return reference.frame_embedding(codes_XQ, table_VE, positions_X, position_table_PD, mode)
    from uniaudio.kernels.embedding.triton_kernels import FrameEmbedding  # here: the torch path works without Triton

    return FrameEmbedding.apply(codes_XQ, table_VE, positions_X, position_table_PD, mode == "concat")
