"""Frame embedding in plain PyTorch."""

import torch
import torch.nn.functional as F


def frame_embedding(
    codes_XQ: torch.Tensor,
    table_VE: torch.Tensor,
    positions_X: torch.Tensor | None,
    position_table_PD: torch.Tensor | None,
    mode: str,
) -> torch.Tensor:
    """(X, D): sum over the codes of table rows (D = E), or the rows side by side (D = Q*E); plus the position's row where given."""
    vectors_XQE = F.embedding(codes_XQ, table_VE)
    frames_XD = vectors_XQE.sum(dim=1) if mode == "sum" else vectors_XQE.flatten(1)
    if positions_X is None or position_table_PD is None:
        return frames_XD
    return frames_XD + F.embedding(positions_X, position_table_PD)
