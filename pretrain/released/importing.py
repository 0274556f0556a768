"""`uniaudio checkpoint import-released`: the released pickle and its YAML -> an export folder (`pretrain.export`)."""

from dataclasses import dataclass
from pathlib import Path

import torch

from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.card import Card, model_rows
from uniaudio.pretrain.checkpoint import Identity
from uniaudio.pretrain.export import model_shapes, require_free, write_folder
from uniaudio.pretrain.released.arguments import Description, known_tasks, read_description, run_config
from uniaudio.pretrain.released.names import check, sources
from uniaudio.pretrain.released.pickle_file import read_tensors
from uniaudio.pretrain.tensor_file import file_digest

logger = get_logger("released")


@dataclass(frozen=True)
class Imported:
    """parameters: how many numbers."""

    out: Path
    description: Description
    parameters: int


def import_released(checkpoint: Path, config: Path, out: Path) -> Imported:
    """Writes the released model to the new folder `out`, in the precision that it has in the file.

    Raises:
        UserError: a file is missing, is not what it should be, or the two do not belong together; `out` is left alone then.
    """
    require_free(out)
    description = read_description(config)
    model, vocabulary = description.model, description.vocabulary
    if description.differences:
        logger.warning("its vocabulary is not the shipped `released` but its own: %s", _few(description.differences))
    tensors = read_tensors(checkpoint)
    shapes = model_shapes(model, vocabulary)
    check(tensors, shapes, model)
    made_from = sources(model)

    def read(name: str) -> torch.Tensor:
        tensor = made_from[name].build(tensors)
        if not torch.isfinite(tensor).all():
            raise UserError(f"{checkpoint} holds values that are not finite", seen=" ".join(made_from[name].names))
        return tensor

    entries = [(name, tensors[made_from[name].names[0]].dtype, shape) for name, shape in shapes.items()]
    origin = {"file": checkpoint.name, "sha256": file_digest(checkpoint), "config": config.name, "config_sha256": file_digest(config)}
    run = run_config(description, out)
    card = Card(
        title="UniAudio, the released checkpoint",
        facts=[
            *model_rows(run, vocabulary, shapes),
            ("tasks that the vocabulary knows", ", ".join(known_tasks(vocabulary))),
            ("imported from", f"{checkpoint.name}, sha256 {origin['sha256']}"),
        ],
        notes=[
            "The weights keep the licence of those who published them; the tokenizers that made their codes are not part of this folder.",
            "Which of the tasks it was trained on, the file does not say.",
        ],
    )
    identity = Identity(run, vocabulary, mlflow_run_id=None, git_commit="unknown")
    write_folder(out, identity, entries, read, card, step=0, origin=origin)
    return Imported(out, description, sum(torch.Size(shape).numel() for shape in shapes.values()))


def _few(differences: list[tuple[str, str]]) -> str:
    return "; ".join(f"{own} (shipped: {shipped})" for shipped, own in differences[:4]) + ("; ..." if len(differences) > 4 else "")
