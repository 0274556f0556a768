"""Starting a training from the weights of another one whose vocabulary is smaller or ordered otherwise: rows follow their token's name.

Owns which old row each new id takes, and the values of ids that are new. Everything else of a checkpoint is `checkpoint.py`.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain import checkpoint
from uniaudio.pretrain.cuts import base_slots, read_cut, read_merged
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.engine import Engine
from uniaudio.pretrain.parallel.named_state import Slot
from uniaudio.pretrain.tensor_file import TensorFiles

logger = get_logger("grow")


def load_initial(path: Path, engine: Engine, vocabulary: Vocabulary) -> Path:
    """Weights of a checkpoint or an export into the engine; moments and step start afresh. Returns the folder they came from.

    Tables over the vocabulary keep the row of every token that both vocabularies name; a token that is new starts as a draw from a
    normal distribution with mean and deviation of the old rows, a pure function of its name.

    Raises:
        UserError: another model, a damaged checkpoint, or a token of the old vocabulary that the new one lacks.
    """
    path = checkpoint.find(path)
    manifest = checkpoint.whole_manifest(path)
    old = Vocabulary.from_table(manifest["vocabulary"]["table"])
    if old.fingerprint == vocabulary.fingerprint:
        return checkpoint.load_weights(path, engine, vocabulary)
    rows = token_rows(old, vocabulary, what=f"checkpoint {path}")
    shapes = {slot.name: _old_shape(slot, old) for slot in base_slots(engine.slots)}
    checkpoint.check_model(path, manifest, engine.run.model)
    checkpoint.check_parameters(path, manifest, shapes)
    files = TensorFiles(path)
    for slot in base_slots(engine.slots):
        tensors = {key: _read(files, manifest, slot, key, old, vocabulary, rows) for key in ("weight", "master")}
        engine.state.write(slot, {key: tensor for key, tensor in tensors.items() if tensor is not None})
    files.close()
    logger.info("vocabulary %s grown from %s of %s: %d of %d ids are new", vocabulary.name, old.name, path, (rows < 0).sum(), len(rows))
    return path


def token_rows(old: Vocabulary, new: Vocabulary, *, what: str) -> np.ndarray:
    """(V new,) int64: the old id of each new id's token, -1 where the old vocabulary has none of that name.

    Raises:
        UserError: the new vocabulary lacks a token that the old one names (reserved ids without a name may go).
    """
    known = {old.token_name(token): token for token in range(old.size) if not _is_unused(old.token_name(token))}
    rows = np.array([known.get(new.token_name(token), -1) for token in range(new.size)], np.int64)
    if lost := sorted(set(known.values()) - set(rows.tolist())):
        names = ", ".join(old.token_name(token) for token in lost[:5])
        raise UserError(
            f"{what}: its vocabulary {old.name} has tokens that {new.name} lacks",
            seen=f"{names}{' ...' if len(lost) > 5 else ''}",
            remedy="a vocabulary for fine-tuning only adds: special tokens, modalities, entries or levels",
        )
    return rows


def _is_unused(name: str) -> bool:
    return name.startswith("<unused_")


def _is_table(slot: Slot) -> bool:
    """Whether the parameter has a row for each id of the vocabulary (`parallel.tensor.mark_cut` notes it)."""
    return getattr(slot.parameter, "valid_rows", None) is not None


def _old_shape(slot: Slot, old: Vocabulary) -> tuple[int, ...]:
    return (old.size, *slot.shape[1:]) if _is_table(slot) else slot.shape


def _read(
    files: TensorFiles, manifest: dict[str, Any], slot: Slot, key: str, old: Vocabulary, new: Vocabulary, rows: np.ndarray
) -> torch.Tensor | None:
    """This rank's cut of a parameter; of a table, the rows of its ids."""
    if not _is_table(slot):
        return read_merged(files, manifest, slot, key)
    whole = read_cut(files, manifest, replace(slot, shape=_old_shape(slot, old), start=0, valid=old.size), key)
    if whole is None:
        return None
    mine = rows[slot.start : slot.start + slot.valid]
    cut = whole[torch.from_numpy(np.maximum(mine, 0))]
    mean, deviation = whole.float().mean(dim=0), whole.float().std(dim=0)
    for place in np.flatnonzero(mine < 0).tolist():
        name = new.token_name(slot.start + place)
        seed = int.from_bytes(hashlib.sha256(f"{slot.name}\0{name}".encode()).digest()[:8], "big") >> 1
        draw = torch.randn(whole.shape[1], generator=torch.Generator().manual_seed(seed))
        cut[place] = (mean + deviation * draw).to(whole.dtype)
    return cut
