"""draw: one code of every row from its logits, on the device: guidance, repetition penalty, temperature, top-k, top-p, noise.

B rows, C legal codes of a level. Every row has settings of its own in two tensors, so that requests of all kinds share a batch and a
CUDA graph. Owns the checks and the choice of path; the definition is in reference.py.
"""

from enum import IntEnum

import torch

from uniaudio.kernels.checks import Backend, check_backend, check_contiguous, check_device, check_float, check_integer, check_shape, fault
from uniaudio.kernels.draw import reference

OP = "draw"
MAX_CODES = 8192


class Setting(IntEnum):
    """Columns of settings_BS, float32. temperature 0 is greedy, top_p 1 cuts nothing, penalty 1 and guidance 1 change nothing."""

    temperature = 0
    top_p = 1
    penalty = 2
    guidance = 3


class Number(IntEnum):
    """Columns of numbers_BN, int64.

    given, free: rows whose logits are mixed, free + guidance (given - free); a row without guidance names itself twice. seed and frame
    number the noise. open_from: the frame from which the end may be drawn. active: 0 leaves score and history as they are.
    """

    given = 0
    free = 1
    top_k = 2
    seed = 3
    frame = 4
    open_from = 5
    active = 6


def draw(
    logits_BC: torch.Tensor,
    settings_BS: torch.Tensor,
    numbers_BN: torch.Tensor,
    history_BC: torch.Tensor,
    score_B: torch.Tensor,
    codes_BQ: torch.Tensor,
    *,
    level: int,
    base: int,
    end: int | None,
    backend: Backend,
) -> None:
    """Writes the id drawn for each row into codes_BQ[:, level], and adds its log-probability to score_B.

    Column c of the logits is the id base + c; with `end` the last column is that id instead, and closed before the row's open_from.
    history_BC: int32, frame at which each column was last drawn (far below 0: never); columns drawn in the last second are penalised.
    The log-probability is that of the mixed logits, before penalty and temperature. The noise is a function of (seed, frame, level,
    column) alone: the draw does not depend on the rows beside, on the device or on the backend. Raises ValueError on other input.
    """
    check_shape(OP, "logits_BC", logits_BC, (None, None))
    check_backend(OP, backend, logits_BC)
    rows, codes = logits_BC.shape
    check_float(OP, backend, logits_BC=logits_BC)
    if not 1 <= codes <= MAX_CODES:
        raise fault(OP, "codes of a level", seen=codes, allowed=f"1..{MAX_CODES}")
    check_shape(OP, "settings_BS", settings_BS, (rows, len(Setting)))
    check_shape(OP, "numbers_BN", numbers_BN, (rows, len(Number)))
    check_shape(OP, "history_BC", history_BC, (rows, codes))
    check_shape(OP, "score_B", score_B, (rows,))
    check_shape(OP, "codes_BQ", codes_BQ, (rows, None))
    for name, tensor in (("settings_BS", settings_BS), ("score_B", score_B)):
        if tensor.dtype != torch.float32:
            raise fault(OP, f"dtype of {name}", seen=tensor.dtype, allowed=torch.float32)
    check_integer(OP, (torch.int64,), numbers_BN=numbers_BN, codes_BQ=codes_BQ)
    check_integer(OP, (torch.int32,), history_BC=history_BC)
    tensors = {"settings_BS": settings_BS, "numbers_BN": numbers_BN, "history_BC": history_BC, "score_B": score_B, "codes_BQ": codes_BQ}
    check_device(OP, logits_BC=logits_BC, **tensors)
    check_contiguous(OP, logits_BC=logits_BC, **tensors)
    if not 0 <= level < codes_BQ.shape[1]:
        raise fault(OP, "level", seen=level, allowed=f"0..{codes_BQ.shape[1] - 1}")
    if backend == "torch":
        reference.draw(logits_BC, settings_BS, numbers_BN, history_BC, score_B, codes_BQ, level, base, end)
        return
    from uniaudio.kernels.draw.triton_kernels import draw as launch  # here: the torch path works without Triton

    launch(logits_BC, settings_BS, numbers_BN, history_BC, score_B, codes_BQ, level, base, end)
