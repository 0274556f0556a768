"""Where checkpoints lie, and what their `manifest.json` says of model and tokens: read without torch, so that others are told at once."""

import json
from pathlib import Path
from typing import Any

from uniaudio.configs.finetune import FinetuneConfig
from uniaudio.configs.flops import parameter_shapes
from uniaudio.configs.load import validate
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.vocabulary import Vocabulary, load_vocabulary

FORMAT = 1
MANIFEST = "manifest.json"
_MEANING = ("structure", "positions", "embedding", "link", "num_heads", "local_heads", "gelu", "norm_eps")  # beyond shapes
_SHAPES = ("width", "ffn_width", "global_layers", "local_layers", "num_codebooks", "max_positions", "text_width")


def published(root: Path) -> list[Path]:
    """Published checkpoints of a folder, oldest first; what a user keeps beside them (`step-00000100-good`) is none of them."""
    return sorted(path.parent for path in root.glob(f"step-*/{MANIFEST}") if path.parent.name[len("step-") :].isdecimal())


def find(path: Path) -> Path:
    """A checkpoint folder as given, or the newest one of a run's `output_dir` (or of its folder `checkpoints`)."""
    for root in (path, path / "checkpoints"):
        if (root / MANIFEST).is_file():
            return root
        if found := published(root):
            return found[-1]
    raise UserError(
        "no checkpoint there", seen=path, allowed=f"a folder that holds {MANIFEST}, or the train.output_dir of a run that has saved"
    )


def recorded_run(path: Path, manifest: dict[str, Any]) -> RunConfig:
    """The config that the checkpoint was made with; UserError where this version does not know it."""
    return validate(RunConfig, manifest["config"], source=f"checkpoint {path}")


def check_model(path: Path, manifest: dict[str, Any], model: ModelConfig) -> None:
    """UserError with every key of the model section by which the weights do not fit, or would be used for other mathematics."""
    saved = recorded_run(path, manifest).model
    differ = [key for key in _MEANING if getattr(saved, key) != getattr(model, key)]
    if "local_heads" in differ and saved.local_num_heads == model.local_num_heads:
        differ.remove("local_heads")  # it follows num_heads
    # Rows of the vocabulary are another question. Both ways: a model of fewer layers would leave the others' weights out without a word.
    if parameter_shapes(saved, 0) != parameter_shapes(model, 0):
        free = () if model.positions == "learned" else ("max_positions",)
        differ += [key for key in _SHAPES if key not in free and getattr(saved, key) != getattr(model, key)]
    if differ:
        raise UserError(
            f"checkpoint {path} is of another model: {', '.join(f'model.{_key(name)}' for name in differ)}",
            seen=", ".join(str(getattr(model, name)) for name in differ),
            allowed=", ".join(str(getattr(saved, name)) for name in differ),
            remedy="use the model section of the config it was made with (manifest.json), or begin anew: another train.output_dir, "
            "no train.init_from",
        )


def _key(name: str) -> str:
    return "local_num_heads" if name == "local_heads" else name


def check_vocabulary(path: Path, manifest: dict[str, Any], vocabulary: Vocabulary) -> None:
    """UserError with both tables where the checkpoint numbers tokens differently."""
    if manifest["vocabulary"]["fingerprint"] != vocabulary.fingerprint:
        vocabulary.require_same(Vocabulary.from_table(manifest["vocabulary"]["table"]), what=f"checkpoint {path}")


def check_finetune(path: Path, manifest: dict[str, Any], finetune: FinetuneConfig) -> None:
    """UserError where the checkpoint froze or adapted other parameters: what it kept of the optimizer would not fit."""
    saved = FinetuneConfig.model_validate(manifest["config"].get("finetune", {}))
    if saved != finetune:
        raise UserError(
            f"checkpoint {path} was made with another section finetune",
            seen=finetune.model_dump(exclude_defaults=True),
            allowed=saved.model_dump(exclude_defaults=True),
            remedy="go on with that, or start another train.output_dir from it by train.init_from",
        )


def check_beginning(run: RunConfig) -> None:
    """Before long work: what the run would resume from, else begin with, fits it. What cannot be read is left to who loads it."""
    root = Path(run.train.output_dir) / "checkpoints"
    resumed = published(root)[-1:]
    if resumed and not run.train.resume:
        raise UserError(
            "train.resume is false and train.output_dir holds checkpoints", seen=root, remedy="another train.output_dir, or remove them"
        )
    if not resumed and run.train.init_from and not Path(run.train.init_from).exists():  # what goes on does not need it any more
        remedy = "a checkpoint, an export, or the train.output_dir of a run that has saved"
        raise UserError("train.init_from: nothing is there", seen=run.train.init_from, remedy=remedy)
    for path in resumed or ([find(Path(run.train.init_from))] if run.train.init_from else []):
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            readable = manifest["format"] == FORMAT and isinstance(manifest["config"], dict) and "fingerprint" in manifest["vocabulary"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if not readable:
            return
        check_model(path, manifest, run.model)
        if resumed:  # what a run begins with may be of a smaller vocabulary, and has no optimizer
            check_vocabulary(path, manifest, load_vocabulary(run.model.vocabulary, run.model.num_codebooks))
            check_finetune(path, manifest, run.finetune)
