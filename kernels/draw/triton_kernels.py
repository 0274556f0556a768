"""draw in Triton: a program a row, the whole row of logits in registers.

The k-th largest value and the nucleus' lowest one are found bit by bit, from the top, on integers that are ordered as the floats are:
32 counts (and 32 sums for top-p, where it cuts at all) instead of a sort, and exact. The definition is reference.py.
"""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

import torch
import triton
import triton.language as tl

from uniaudio.kernels.draw.reference import WINDOW


@triton.jit
def _mix(x):
    """Bijection of 32-bit words (lowbias32)."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _uniform(seed, frame, level, columns):
    """float32 strictly between 0 and 1 for each column."""
    state = _mix(seed.to(tl.uint32) ^ 0x9E3779B9)
    state = _mix(state ^ (seed >> 32).to(tl.uint32))
    state = _mix(state ^ (frame * 64 + level).to(tl.uint32))
    hashed = _mix(state ^ (columns.to(tl.uint32) * 0x85EBCA6B))
    return (hashed >> 8).to(tl.float32) * 5.9604644775390625e-08 + 2.98023223876953125e-08


@triton.jit
def _largest_with(keys, weights, wanted):
    """The largest integer t for which the weights of all keys >= t sum to at least `wanted`."""
    bound = tl.full((), -2147483648, tl.int64)
    for bit in range(32):
        trial = bound + (tl.full((), 1, tl.int64) << (31 - bit))
        reached = tl.sum(tl.where(keys >= trial, weights, 0.0), axis=0) >= wanted
        bound = tl.where(reached, trial, bound)
    return bound


@triton.jit
def _draw(
    logits, settings, numbers, history, score, codes, level, base, end,
    C: tl.constexpr, WIDTH: tl.constexpr, Q: tl.constexpr, S: tl.constexpr, N: tl.constexpr, HAS_END: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    there = columns < C
    temperature, top_p = tl.load(settings + row * S), tl.load(settings + row * S + 1)
    penalty, guidance = tl.load(settings + row * S + 2), tl.load(settings + row * S + 3)
    given, free, top_k = tl.load(numbers + row * N), tl.load(numbers + row * N + 1), tl.load(numbers + row * N + 2)
    seed, frame = tl.load(numbers + row * N + 3), tl.load(numbers + row * N + 4)
    opens, active = tl.load(numbers + row * N + 5), tl.load(numbers + row * N + 6)
    lowest = float("-inf")
    alone = tl.load(logits + free * C + columns, mask=there, other=0.0).to(tl.float32)
    mixed = tl.load(logits + given * C + columns, mask=there, other=0.0).to(tl.float32)
    values = tl.where(there, alone + guidance * (mixed - alone), lowest)
    if HAS_END:
        values = tl.where((columns == C - 1) & (frame < opens), lowest, values)
    top = tl.max(values, axis=0)
    log_total = top + tl.log(tl.sum(tl.exp(values - top), axis=0))
    plain = values
    last = tl.load(history + row * C + columns, mask=there, other=-2147483648)
    recent = frame - last.to(tl.int64) <= WINDOW
    values = tl.where(recent, tl.where(values > 0, values / penalty, values * penalty), values)

    bits = values.to(tl.int32, bitcast=True)
    keys = tl.where(there, bits ^ ((bits >> 31) & 0x7FFFFFFF), -2147483648).to(tl.int64)
    keys = tl.where(values == 0.0, 0, keys)  # the two zeros are one value
    kept = keys >= _largest_with(keys, tl.where(there, 1.0, 0.0), tl.minimum(tl.maximum(top_k, 1), C).to(tl.float32))
    kept = kept & there
    warmth = tl.where(temperature > 0, temperature, 1.0)
    if top_p < 1.0:
        weights = tl.where(kept, tl.exp((values - tl.max(values, axis=0)) / warmth), 0.0)
        kept = kept & (keys >= _largest_with(keys, weights, top_p * tl.sum(weights, axis=0)))
    noise = -tl.log(-tl.log(_uniform(seed, frame, level, columns)))
    race = tl.where(temperature > 0, values / warmth + noise, values)
    column = tl.argmax(tl.where(kept, race, lowest), axis=0)

    chosen = tl.sum(tl.where(columns == column, plain, 0.0), axis=0)
    if active > 0:
        tl.store(score + row, tl.load(score + row) + chosen - log_total)
        tl.store(history + row * C + column, frame.to(tl.int32))
    token = (base + column).to(tl.int64)
    if HAS_END:
        token = tl.where(column == C - 1, end, token)
    tl.store(codes + row * Q + level, token)


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
    """One launch for all rows."""
    rows, codes = logits_BC.shape
    if rows == 0:
        return
    _draw[(rows,)](
        logits_BC, settings_BS, numbers_BN, history_BC, score_B, codes_BQ, level, base, -1 if end is None else end,
        codes, max(16, triton.next_power_of_2(codes)), codes_BQ.shape[1], settings_BS.shape[1], numbers_BN.shape[1],
        end is not None, WINDOW, num_warps=4,
    )  # fmt: skip
