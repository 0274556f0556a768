"""Random draws as a pure function of integers (splitmix64): the same on every machine, process and numpy version."""

import zlib

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def hashed(*parts: int | np.ndarray) -> np.ndarray:
    """uint64 hash of integers that are scalars or arrays broadcast against each other; the order of the parts counts."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = (state ^ np.asarray(part).astype(np.uint64)) + _GAMMA
            state = (state ^ (state >> np.uint64(30))) * _MIX1
            state = (state ^ (state >> np.uint64(27))) * _MIX2
            state = state ^ (state >> np.uint64(31))
    return state


def below(hashes: np.ndarray, bounds: int | np.ndarray) -> np.ndarray:
    """int64 in 0..bounds-1 from hashes; bounds at least 1. (The bias of the remainder is below bounds / 2^64.)"""
    return (hashes % np.asarray(bounds).astype(np.uint64)).astype(np.int64)


def shuffled(count: int, *parts: int) -> np.ndarray:
    """A permutation of 0..count-1, int64."""
    return np.argsort(hashed(*parts, np.arange(count)), kind="stable")


def salt(name: str) -> int:
    """A stable integer from a name, so that a task's draws do not depend on the tasks beside it."""
    return zlib.crc32(name.encode())
