"""draw in plain PyTorch: backend "torch", and the definition.

The draw is argmax(z / temperature + g) over the candidates with Gumbel noise g = -log(-log(u)) (Gumbel-max: the candidate i wins with
probability softmax(z / temperature)_i). Candidates: values of at least the k-th largest, then those above which lies less than top_p of
the candidates' probability. u comes from a hash of (seed, frame, level, column) in 32-bit arithmetic.
"""

import torch

WINDOW = 50  # frames after which a drawn code is no longer penalised: one second
_WORD = 0xFFFFFFFF


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit words (Wang, Mueller: lowbias32); int64 in and out, 0..2^32-1."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def uniform(seed_B: torch.Tensor, frame_B: torch.Tensor, level: int, columns_C: torch.Tensor) -> torch.Tensor:
    """(B, C) float32 strictly between 0 and 1, a multiple of 2^-24 plus 2^-25."""
    state_B = _mix((seed_B & _WORD) ^ 0x9E3779B9)
    state_B = _mix(state_B ^ ((seed_B >> 32) & _WORD))
    state_B = _mix(state_B ^ ((frame_B * 64 + level) & _WORD))
    hashed_BC = _mix(state_B[:, None] ^ ((columns_C[None, :] * 0x85EBCA6B) & _WORD))
    return (hashed_BC >> 8).to(torch.float32) * 2.0**-24 + 2.0**-25


def draw(
    logits_BC: torch.Tensor,
    settings_BS: torch.Tensor,
    numbers_BN: torch.Tensor,
    history_BC: torch.Tensor,
    score_B: torch.Tensor,
    codes_BQ: torch.Tensor,
    level: int,
    base: int,
    end: int | None,
) -> None:
    """As the interface says; changes history_BC, score_B and codes_BQ in place."""
    temperature_B, top_p_B, penalty_B, guidance_B = (column[:, None] for column in settings_BS.unbind(1))
    given_B, free_B, top_k_B, seed_B, frame_B, open_from_B, active_B = numbers_BN.unbind(1)
    columns_C = torch.arange(logits_BC.shape[1], device=logits_BC.device)
    free_BC = logits_BC[free_B].float()
    values_BC = free_BC + guidance_B * (logits_BC[given_B].float() - free_BC)
    if end is not None:
        closed_BC = (frame_B < open_from_B)[:, None] & (columns_C == len(columns_C) - 1)
        values_BC = values_BC.masked_fill(closed_BC, float("-inf"))
    log_p_BC = values_BC.log_softmax(dim=1)
    recent_BC = frame_B[:, None] - history_BC <= WINDOW
    penalised_BC = torch.where(values_BC > 0, values_BC / penalty_B, values_BC * penalty_B)
    values_BC = torch.where(recent_BC, penalised_BC, values_BC)
    top_k_B = top_k_B.clamp(1, len(columns_C))
    ordered_BK = values_BC.topk(int(top_k_B.max()) if len(top_k_B) else 1, dim=1).values
    kth_B = ordered_BK.gather(1, top_k_B[:, None] - 1)
    warmth_B = torch.where(temperature_B > 0, temperature_B, 1.0)
    weights_BK = torch.where(ordered_BK >= kth_B, ((ordered_BK - ordered_BK[:, :1]) / warmth_B).exp(), 0.0)
    above_BK = (weights_BK.cumsum(dim=1) - weights_BK) / weights_BK.sum(dim=1, keepdim=True)
    inside_BK = (above_BK < top_p_B) | (top_p_B >= 1)
    lowest_B = torch.where(inside_BK, ordered_BK, float("inf")).amin(dim=1, keepdim=True)
    noise_BC = -(-uniform(seed_B, frame_B, level, columns_C).log()).log()
    race_BC = torch.where(temperature_B > 0, values_BC / warmth_B + noise_BC, values_BC)
    race_BC = race_BC.masked_fill((values_BC < kth_B) | (values_BC < lowest_B), float("-inf"))
    column_B = race_BC.argmax(dim=1)
    score_B += active_B * log_p_BC.gather(1, column_B[:, None]).squeeze(1)
    last_B = torch.where(active_B > 0, frame_B, history_BC.gather(1, column_B[:, None]).squeeze(1)).to(torch.int32)
    history_BC.scatter_(1, column_B[:, None], last_B[:, None])
    ids_B = base + column_B
    codes_BQ[:, level] = ids_B if end is None else torch.where(column_B == len(columns_C) - 1, end, ids_B)
