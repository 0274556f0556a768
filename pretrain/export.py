"""A model alone in a folder: what is shared, loaded with one line, generated from, and fine-tuned.

OUT/manifest.json              a checkpoint's (`pretrain.checkpoint`), so whatever reads checkpoints reads this folder
    weights-whole.safetensors  every parameter whole, by canonical name
    config.yaml                the run's config
    vocabulary.yaml            the table of token ids, in the form of configs/vocabularies
    README.md                  model card
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from uniaudio.atomic import publish_directory
from uniaudio.configs.finetune import FinetuneConfig
from uniaudio.configs.load import dump_config, shipped
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain import checkpoint
from uniaudio.pretrain.card import Card, loss_figures, model_rows
from uniaudio.pretrain.checkpoint import MANIFEST, Identity
from uniaudio.pretrain.cuts import read_merged
from uniaudio.pretrain.data.vocabulary import Vocabulary, load_vocabulary
from uniaudio.pretrain.model import adapters
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.parallel.layout import Layout
from uniaudio.pretrain.parallel.named_state import Slot, make_slot
from uniaudio.pretrain.tensor_file import TensorFiles, TensorFileWriter

TAG = "whole"
WEIGHTS = f"weights-{TAG}.safetensors"
Precision = Literal["saved", "fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Entries = Sequence[tuple[str, torch.dtype, tuple[int, ...]]]


def model_slots(model: ModelConfig, vocabulary: Vocabulary, finetune: FinetuneConfig | None = None) -> list[Slot]:
    """The parameters of a model on one process, without memory behind them; with `finetune` its adapters too."""
    with torch.device("meta"):
        module = MultiScaleTransformer(model, vocabulary, seed=None)
    if finetune is not None:
        adapters.prepare(module, finetune, seed=None)
    return [make_slot(name, parameter, Layout()) for name, parameter in module.named_parameters()]


def model_shapes(model: ModelConfig, vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape without padding rows, in the order of the layers."""
    return {slot.name: slot.shape for slot in model_slots(model, vocabulary)}


def require_free(out: Path) -> None:
    """UserError where something is at `out`: an export never replaces anything."""
    if out.exists():
        raise UserError("there is something already", seen=out, remedy="another --out, or remove it")


def write_folder(
    out: Path,
    identity: Identity,
    entries: Entries,
    read: Callable[[str], torch.Tensor],
    card: Card,
    *,
    step: int,
    origin: dict[str, Any],
) -> None:
    """Publishes the folder whole or not at all; `read` gives the tensor of each entry in turn, so they never all exist at once."""
    require_free(out)
    with publish_directory(out) as folder:
        with TensorFileWriter(folder / WEIGHTS, entries) as writer:
            for name, *_ in entries:
                writer.write(name, read(name))
        run = _with_vocabulary(identity.run, identity.vocabulary, out)
        identity = Identity(run, identity.vocabulary, identity.mlflow_run_id, identity.git_commit, identity.tokenizers)
        part = {"tag": TAG, "start": 0, "stop": 0}
        parameters = {
            slot.name: {
                "shape": list(slot.shape),
                "dim": slot.partition_dim,
                "parts": [part | {"stop": slot.valid}],
            }
            for slot in model_slots(run.model, identity.vocabulary)
        }
        files = {WEIGHTS: {"sha256": writer.digest, "bytes": writer.size}}
        manifest = checkpoint.make_manifest(identity, {"step": step}, files, parameters) | {"origin": origin}
        (folder / MANIFEST).write_bytes(checkpoint.manifest_bytes(manifest))
        (folder / "config.yaml").write_text(dump_config(run), encoding="utf-8")
        (folder / "vocabulary.yaml").write_text(vocabulary_yaml(identity.vocabulary), encoding="utf-8")
        (folder / "README.md").write_text(card.text(run, generates=bool(identity.tokenizers)), encoding="utf-8")


def _with_vocabulary(run: RunConfig, vocabulary: Vocabulary, out: Path) -> RunConfig:
    """The config with a table that is there for whoever gets the folder: the shipped one of that name, or the folder's own."""
    name = run.model.vocabulary
    if name in shipped("vocabularies") and load_vocabulary(name, run.model.num_codebooks).fingerprint == vocabulary.fingerprint:
        return run
    return run.model_copy(update={"model": run.model.model_copy(update={"vocabulary": str(out / "vocabulary.yaml")})})


def vocabulary_yaml(vocabulary: Vocabulary) -> str:
    """The table in the form that `load_vocabulary` reads."""
    modalities = [{"name": name, "entries": entries, "levels": levels} for name, _, entries, levels in vocabulary.ranges]
    table = {
        "reserved": vocabulary.reserved,
        "specials": list(vocabulary.specials),
        "audio_mask": vocabulary.mask,
        "modalities": modalities,
    }
    return yaml.safe_dump(table, sort_keys=False, allow_unicode=True, width=140)


def export_checkpoint(source: Path, out: Path, *, precision: Precision = "saved") -> Path:
    """Exports a checkpoint, or the newest of a run's folder; returns the checkpoint's folder.

    precision: of the weights; `saved` is the one that they were trained in, `fp32` takes the optimizer's fp32 weights where there are any.

    Raises:
        UserError: no whole checkpoint there, or something at `out`.
    """
    require_free(out)
    path = checkpoint.find(source)
    wants_master = precision == "fp32"
    manifest = checkpoint.whole_manifest(path, prefixes=("weights-", "optimizer-") if wants_master else ("weights-",))
    tuned = checkpoint.recorded_run(path, manifest)
    run = tuned.model_copy(update={"finetune": FinetuneConfig()})  # adapters go into the weights
    vocabulary = Vocabulary.from_table(manifest["vocabulary"]["table"])
    slots = {slot.name: slot for slot in model_slots(run.model, vocabulary)}
    shapes = {name: slot.shape for name, slot in slots.items()}
    checkpoint.check_parameters(path, manifest, shapes)
    files = TensorFiles(path)

    def read(name: str) -> torch.Tensor:
        tensor = read_merged(files, manifest, slots[name], "master") if wants_master else None
        if tensor is None:
            tensor = read_merged(files, manifest, slots[name], "weight")
        assert tensor is not None
        return tensor if precision == "saved" else tensor.to(DTYPES[precision])

    saved = {"bf16": torch.bfloat16, "fp32": torch.float32}[run.train.precision]
    dtype = DTYPES.get(precision, saved)
    identity = Identity(run, vocabulary, manifest["mlflow_run_id"], manifest["git_commit"], manifest.get("tokenizers", {}))
    step = manifest["step"]
    card = Card(
        title=f"UniAudio, {Path(run.train.output_dir).name}",
        facts=[
            *model_rows(run, vocabulary, shapes),
            ("tasks", ", ".join(run.data.tasks)),
            (
                "trained",
                f"{step} steps of {run.frames_per_step} frames, {run.train.precision}; weights here {str(dtype).removeprefix('torch.')}",
            ),
            *([("fine-tuned", _finetuned(tuned))] if tuned.finetune.active else []),
            ("code", f"commit {manifest['git_commit']}"),
        ],
        figures=loss_figures(path.parent.parent / "metrics.jsonl", step),
    )
    origin = {"checkpoint": path.name, "run": Path(run.train.output_dir).name, "mlflow_run_id": manifest["mlflow_run_id"]}
    write_folder(out, identity, [(name, dtype, shape) for name, shape in shapes.items()], read, card, step=step, origin=origin)
    files.close()
    return path


def _finetuned(run: RunConfig) -> str:
    """Of the card: from what, and how."""
    lora = run.finetune.lora
    how = f"adapters of rank {lora.rank} on {', '.join(lora.layers)}, merged here" if lora.rank else "some parameters frozen"
    return f"from {Path(str(run.train.init_from)).name}, {how}"
