"""Teacher-forced likelihood on held-out documents: loss and accuracy by level, beside the unigram entropy of the same codes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from uniaudio.pretrain.data.batch import Batch, document_ids_BT
from uniaudio.pretrain.evaluation.statistics import Interval, weighted_mean
from uniaudio.pretrain.metrics import count_codes, unigram_metrics
from uniaudio.pretrain.model.model import MultiScaleTransformer


@dataclass(frozen=True)
class Likelihood:
    """Over all target codes: loss in nats a code, accuracy of the likeliest code, unigram entropy of the same codes; by level, too."""

    loss: Interval
    accuracy: Interval
    unigram: float
    loss_by_level: tuple[float, ...]
    accuracy_by_level: tuple[float, ...]
    documents: int


@torch.inference_mode()
def likelihood(model: MultiScaleTransformer, batches: Sequence[Batch], *, vocabulary_size: int) -> Likelihood:
    """Of batches of one task. Intervals are over documents."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    sums = [_document_sums(model, batch.to(device, float_dtype=dtype), vocabulary_size) for batch in batches]
    loss_NQ, hits_NQ, counts_NQ = (np.concatenate(parts) for parts in zip(*sums))
    weights = counts_NQ.sum(axis=1)
    levels = counts_NQ.sum(axis=0)
    histogram = count_codes(batches, 1, vocabulary_size)
    return Likelihood(
        loss=weighted_mean(loss_NQ.sum(axis=1), weights),
        accuracy=weighted_mean(hits_NQ.sum(axis=1), weights),
        unigram=unigram_metrics(histogram, ["task"])["unigram"],
        loss_by_level=tuple((loss_NQ.sum(axis=0) / levels).tolist()),
        accuracy_by_level=tuple((hits_NQ.sum(axis=0) / levels).tolist()),
        documents=len(weights),
    )


def _document_sums(model: MultiScaleTransformer, batch: Batch, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed loss, right codes and number of target codes, (N, Q) each over the documents with a target."""
    rows, frames, levels = batch.codes_BTQ.shape
    logits = model.logits(batch)[..., :vocabulary_size].float()
    mask = batch.target_mask_BTQ.bool()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 2), batch.codes_BTQ.flatten(), reduction="none").view(mask.shape)
    hits = logits.argmax(dim=-1) == batch.codes_BTQ
    most = batch.document_starts_BD.shape[1] + 1
    documents_BT = document_ids_BT(batch.document_starts_BD, frames) + torch.arange(rows, device=mask.device)[:, None] * most
    columns = []
    for values in (losses, hits, torch.ones_like(losses)):
        sums = torch.zeros(rows * most, levels, dtype=torch.float64, device=mask.device)
        sums.index_add_(0, documents_BT.flatten(), (values * mask).double().flatten(0, 1))
        columns.append(sums.cpu().numpy())
    counted = columns[2].sum(axis=1) > 0
    return columns[0][counted], columns[1][counted], columns[2][counted]
