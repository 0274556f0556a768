"""A training on disk by canonical parameter names: its form, and reading it under any layout, without pickle.

    OUT/checkpoints/step-00000100/manifest.json                      config, vocabulary, position, parameters, sha256 of every file
                                  weights-pp00-tp00-000.safetensors   some parameters of a (pipeline, tensor) rank; NAME -> its cut, without
                                                                      padding rows
                                  optimizer-pp00-tp00-000.safetensors NAME.exp_avg, NAME.exp_avg_sq, NAME.master (bf16: fp32 weights)
                                  rng-00000.safetensors               one a rank

`pretrain.checkpoint_writer` writes them. The learning rate and the position in the data are functions of the step, so the step is all that
they need.
"""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.log import get_logger
from uniaudio.pretrain.cuts import base_slots, read_cut, read_merged
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.engine import Engine
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.parallel.layout import Layout
from uniaudio.pretrain.parallel.named_state import MOMENTS, make_slot
from uniaudio.pretrain.recorded import FORMAT, MANIFEST, check_finetune, check_model, check_vocabulary, find, published, recorded_run
from uniaudio.pretrain.tensor_file import TensorFiles, file_digest

_NEEDED = ("step", "config", "vocabulary", "files", "parameters")  # of a manifest, and none of them empty
logger = get_logger("checkpoint")


@dataclass(frozen=True)
class Identity:
    """What a checkpoint says of its training, beside tensors."""

    run: RunConfig
    vocabulary: Vocabulary
    mlflow_run_id: str | None
    git_commit: str
    tokenizers: dict[str, dict[str, Any]] = field(default_factory=dict)  # view -> name, options, version: who made the codes


def folder_of(root: Path, step: int) -> Path:
    """`root`/step-00000100."""
    return root / f"step-{step:08d}"


def make_manifest(identity: Identity, position: dict[str, int], files: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """What `manifest.json` says; position: `step`, and for a training `row`."""
    return {
        "format": FORMAT,
        "step": position["step"],
        "data_position": position,
        "config": identity.run.model_dump(mode="json"),
        "vocabulary": {"fingerprint": identity.vocabulary.fingerprint, "table": identity.vocabulary.to_table()},
        "mlflow_run_id": identity.mlflow_run_id,
        "git_commit": identity.git_commit,
        "tokenizers": identity.tokenizers,
        "torch": torch.__version__,
        "files": files,
        "parameters": parameters,
    }


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """`manifest.json` as it is written."""
    return json.dumps(manifest, indent=1).encode()


# ---- restoring ----


@dataclass(frozen=True)
class Restored:
    """Where a training goes on."""

    step: int
    path: Path
    manifest: dict[str, Any]


class DamagedCheckpoint(Exception):
    """A checkpoint whose bytes are not those that were written."""


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder; DamagedCheckpoint where it cannot be read, UserError for a newer format."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        format_number = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{MANIFEST}: {error}") from error
    if format_number != FORMAT:
        raise UserError(
            f"checkpoint {path} has another format", seen=format_number, allowed=FORMAT, remedy="use the version of uniaudio that wrote it"
        )
    if lost := [key for key in _NEEDED if manifest.get(key) in (None, {})]:
        raise DamagedCheckpoint(f"{MANIFEST}: without {', '.join(lost)}")
    return manifest


def verify(path: Path, manifest: dict[str, Any], *, share: int = 0, shares: int = 1, prefix: str = "") -> None:
    """Compares size and sha256 of every `shares`-th file, several at once; DamagedCheckpoint names the first that differs."""

    def check(named: tuple[str, dict[str, Any]]) -> None:
        name, entry = named
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            raise DamagedCheckpoint(f"{name}: {'missing' if size is None else f'{size} bytes'}, expected {entry['bytes']} bytes")
        if (digest := file_digest(file)) != entry["sha256"]:
            raise DamagedCheckpoint(f"{name}: sha256 {digest[:12]}, expected {entry['sha256'][:12]}")

    chosen = [named for named in sorted(manifest["files"].items())[share::shares] if named[0].startswith(prefix)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(check, chosen))


def restore(root: Path, engine: Engine, vocabulary: Vocabulary) -> Restored | None:
    """Loads the newest whole checkpoint of `root` into the engine; None where there is none; a collective call.

    A damaged one is reported and the one before it is taken.

    Raises:
        UserError: all are damaged, or the checkpoint is of another vocabulary or model.
    """
    paths = engine.gather(published(root))[0]
    damaged = []
    for path in reversed(paths):
        fault, manifest = None, {}
        try:
            manifest = read_manifest(path)
            if lost := [key for key in ("data_position", "mlflow_run_id") if key not in manifest]:
                raise DamagedCheckpoint(f"{MANIFEST}: without {', '.join(lost)}")
            verify(path, manifest, share=engine.layout.rank, shares=engine.layout.world_size)
        except DamagedCheckpoint as error:
            fault = str(error)
        fault = next((text for text in engine.gather(fault) if text), None)
        if fault is None:
            check_finetune(path, manifest, engine.run.finetune)
            load_tensors(path, manifest, engine, vocabulary, optimizer=True)
            _restore_rng(path, manifest, engine)
            return Restored(manifest["step"], path, manifest)
        damaged.append(f"{path.name}: {fault}")
        logger.error("checkpoint %s is damaged (%s); going back to the one before it", path, fault)
    if damaged:
        raise UserError(
            f"no whole checkpoint in {root}",
            seen="; ".join(damaged),
            remedy="restore one from a copy, or move the folder away to start over",
        )
    return None


def load_tensors(path: Path, manifest: dict[str, Any], engine: Engine, vocabulary: Vocabulary, *, optimizer: bool) -> None:
    """Weights, and with `optimizer` the moments and the step count, each rank its own cuts, whatever layout wrote them.

    Without `optimizer` a checkpoint's adapters go into its weights, and those of the engine stay as they are.
    """
    check_vocabulary(path, manifest, vocabulary)
    check_model(path, manifest, engine.run.model)
    slots = engine.slots if optimizer else base_slots(engine.slots)
    check_parameters(path, manifest, {slot.name: slot.shape for slot in slots})
    if optimizer:
        engine.state.prepare(manifest["step"])
    files = TensorFiles(path)
    read, keys = (read_cut, ("weight", "master", *MOMENTS)) if optimizer else (read_merged, ("weight", "master"))
    for slot in slots:
        tensors = {key: read(files, manifest, slot, key) for key in keys}
        if optimizer and slot.trained and tensors[MOMENTS[0]] is None:
            raise weights_alone(path, "a training cannot go on from it")
        engine.state.write(slot, {key: tensor for key, tensor in tensors.items() if tensor is not None})
    files.close()


def weights_alone(path: Path, so: str) -> UserError:
    """For what needs the state of the optimizer, of a checkpoint or an export that lacks it."""
    return UserError(
        f"{path} holds weights without the state of the optimizer: {so}",
        seen="an export",
        allowed="a checkpoint of a training",
        remedy="begin with its weights: train.init_from, and another train.output_dir",
    )


def check_parameters(path: Path, manifest: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """UserError where the checkpoint lacks one of these parameters (canonical name -> whole shape), or has it in another shape."""
    saved = {name: tuple(entry["shape"]) for name, entry in manifest["parameters"].items()}
    for name, shape in shapes.items():
        if saved.get(name) != shape:
            raise UserError(
                f"checkpoint {path} is of another model: parameter {name}",
                seen=saved.get(name, "not in the checkpoint"),
                allowed=shape,
                remedy="use the model section of the config it was made with (manifest.json), or another train.output_dir",
            )


def _restore_rng(path: Path, manifest: dict[str, Any], engine: Engine) -> None:
    """This rank's generators; ranks that the checkpoint did not know get a seed of their own."""
    name = f"rng-{engine.layout.rank:05d}.safetensors"
    files = TensorFiles(path)
    if name not in manifest["files"]:
        torch.manual_seed(((manifest["config"]["train"]["seed"] << 32) + (manifest["step"] << 12) + engine.layout.rank) % 2**64)
        return
    torch.set_rng_state(files.read(name, "cpu"))
    if engine.device.type == "cuda" and files.has(name, "cuda"):
        torch.cuda.set_rng_state(files.read(name, "cuda"), engine.device)
    files.close()


# ---- weights alone ----


def load_weights(path: Path, engine: Engine, vocabulary: Vocabulary) -> Path:
    """Weights of another training into the engine, for fine-tuning: moments and step start afresh. Returns the folder they came from."""
    path = find(path)
    manifest = whole_manifest(path)
    load_tensors(path, manifest, engine, vocabulary, optimizer=False)
    return path


def load_model(path: Path, device: torch.device | str, dtype: torch.dtype) -> tuple[MultiScaleTransformer, RunConfig, Vocabulary]:
    """The model of a checkpoint (or of a run's newest), whole on one device, in evaluation mode.

    Raises:
        UserError: no checkpoint there, or its bytes are not those that were written.
    """
    path = find(Path(path))
    manifest = whole_manifest(path)
    run = recorded_run(path, manifest)
    vocabulary = Vocabulary.from_table(manifest["vocabulary"]["table"])
    backend: Literal["torch", "triton"] = "triton" if torch.device(device).type == "cuda" and run.model.kernels != "torch" else "torch"
    model = MultiScaleTransformer(run.model, vocabulary, num_tasks=len(run.data.tasks), backend=backend, seed=None)
    slots = [make_slot(name, parameter, Layout()) for name, parameter in model.named_parameters()]
    check_parameters(path, manifest, {slot.name: slot.shape for slot in slots})
    files = TensorFiles(path)
    with torch.no_grad():
        for slot in slots:
            tensor = read_merged(files, manifest, slot, "weight")
            assert tensor is not None
            target = slot.parameter
            if slot.partition_dim is not None:
                if slot.valid < target.shape[slot.partition_dim]:
                    target.zero_()  # rows that only pad the vocabulary
                target = target.narrow(slot.partition_dim, 0, slot.valid)
            target.copy_(tensor)
    files.close()
    return model.to(device=device, dtype=dtype).eval(), run, vocabulary


def whole_manifest(path: Path, *, prefixes: Iterable[str] = ("weights-",)) -> dict[str, Any]:
    """The manifest of a checkpoint whose files of these prefixes are as they were written; UserError for a damaged one."""
    try:
        manifest = read_manifest(path)
        for prefix in prefixes:
            verify(path, manifest, prefix=prefix)
    except DamagedCheckpoint as error:
        raise UserError(f"checkpoint {path} is damaged", seen=error, remedy="use an earlier one") from error
    return manifest


def read_tokenizers(path: Path) -> dict[str, dict[str, Any]]:
    """View -> `name`, `options`, `version` of the tokenizer that made the checkpoint's shards; empty where they did not say."""
    path = find(Path(path))
    try:
        return read_manifest(path).get("tokenizers", {})
    except DamagedCheckpoint as error:
        raise UserError(f"checkpoint {path} is damaged", seen=error, remedy="use an earlier one") from error
