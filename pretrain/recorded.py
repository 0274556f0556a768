"""Where checkpoints lie, and what their `manifest.json` says of the model: read without torch, so that another model is told at once."""

import json
from pathlib import Path
from typing import Any

from uniaudio.configs.flops import parameter_shapes
from uniaudio.configs.load import validate
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError

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
            remedy="use the model section of the config it was made with (manifest.json), or another train.output_dir",
        )


def _key(name: str) -> str:
    return "local_num_heads" if name == "local_heads" else name


def require_same_model(run: RunConfig) -> None:
    """Before long work: `check_model` of what the run would resume from, else begin with. What cannot be read is left to who loads it."""
    root = Path(run.train.output_dir) / "checkpoints"
    paths = published(root) if run.train.resume else []
    if not paths and run.train.init_from:
        paths = [find(Path(run.train.init_from))]
    if not paths:
        return
    try:
        manifest = json.loads((paths[-1] / MANIFEST).read_text(encoding="utf-8"))
        readable = manifest["format"] == FORMAT and isinstance(manifest["config"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return
    if readable:
        check_model(paths[-1], manifest, run.model)
