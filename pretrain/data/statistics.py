"""Unigram entropy of target codes: what a model that knows only how often each code occurs would reach. Nats per code."""

from collections.abc import Iterable

import numpy as np

from uniaudio.pretrain.data.batch import Batch


def unigram_counts(batches: Iterable[Batch], vocabulary_size: int) -> np.ndarray:
    """(Q, V) int64: how often each id is counted by the loss at each codebook level."""
    counts: np.ndarray | None = None
    for batch in batches:
        codes, counted = batch.codes_BTQ.numpy(), batch.target_mask_BTQ.numpy().astype(bool)
        levels = codes.shape[-1]
        counts = np.zeros((levels, vocabulary_size), np.int64) if counts is None else counts
        for level in range(levels):
            counts[level] += np.bincount(codes[..., level][counted[..., level]], minlength=vocabulary_size)
    if counts is None:
        raise ValueError("no batches to count")
    return counts


def unigram_entropy(counts_QV: np.ndarray) -> np.ndarray:
    """(Q,) float64: entropy of each level's counts; 0 for a level without codes. The mean over levels compares with a loss per code."""
    totals = np.maximum(counts_QV.sum(axis=1, keepdims=True), 1)
    shares = counts_QV / totals
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)


def unigram_cross_entropy(train_QV: np.ndarray, held_out_QV: np.ndarray) -> np.ndarray:
    """(Q,) float64: loss on held-out codes of a unigram model fitted on the train counts (one added to each id seen in either)."""
    seen = (train_QV + held_out_QV) > 0
    smoothed = np.where(seen, train_QV + 1.0, 0.0)
    model = smoothed / smoothed.sum(axis=1, keepdims=True)
    shares = held_out_QV / np.maximum(held_out_QV.sum(axis=1, keepdims=True), 1)
    return -(shares * np.log(np.where(seen, model, 1.0))).sum(axis=1)
