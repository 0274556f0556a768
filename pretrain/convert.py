"""A checkpoint of any layout as one of whole parameters in few files, optimizer state and all: to keep, to move, to look into.

A training resumes from either under any layout; whole ones are what other tools read most easily.
"""

import shutil
from pathlib import Path

from uniaudio.atomic import publish_directory
from uniaudio.pretrain import checkpoint
from uniaudio.pretrain.checkpoint import MANIFEST
from uniaudio.pretrain.cuts import read_cut
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.export import TAG, model_slots, require_free
from uniaudio.pretrain.parallel.named_state import MOMENTS
from uniaudio.pretrain.tensor_file import TensorFiles, TensorFileWriter


def convert_checkpoint(source: Path, out: Path) -> Path:
    """Writes a checkpoint, or a run's newest, below `out` as a run's folder with one checkpoint; returns that checkpoint's folder.

    Raises:
        UserError: no whole checkpoint there, an export, or something at `out`.
    """
    require_free(out)
    path = checkpoint.find(source)
    manifest = checkpoint.whole_manifest(path, prefixes=("",))
    if not any(name.startswith("optimizer-") for name in manifest["files"]):
        raise checkpoint.weights_alone(path, "there is nothing to go on from")
    run = checkpoint.recorded_run(path, manifest)
    slots = model_slots(run.model, Vocabulary.from_table(manifest["vocabulary"]["table"]), run.finetune)
    checkpoint.check_parameters(path, manifest, {slot.name: slot.shape for slot in slots})
    files = TensorFiles(path)
    written = {name: entry for name, entry in manifest["files"].items() if name.startswith("rng-")}
    with publish_directory(out) as folder:
        inner = checkpoint.folder_of(folder / "checkpoints", manifest["step"])
        inner.mkdir(parents=True)
        for name in written:
            shutil.copyfile(path / name, inner / name)
        for kind, keys in (("weights", ("weight",)), ("optimizer", (*MOMENTS, "master"))):
            tensors = {
                slot.name if key == "weight" else f"{slot.name}.{key}": (slot, key)
                for slot in slots
                for key in keys
                if read_cut(files, manifest, slot, key) is not None
            }
            if not tensors:
                continue
            name = f"{kind}-{TAG}.safetensors"
            first_slot, first_key = next(iter(tensors.values()))
            kept = read_cut(files, manifest, first_slot, first_key)
            assert kept is not None
            with TensorFileWriter(inner / name, [(entry, kept.dtype, slot.shape) for entry, (slot, _) in tensors.items()]) as writer:
                for entry, (slot, key) in tensors.items():
                    tensor = read_cut(files, manifest, slot, key)
                    assert tensor is not None
                    writer.write(entry, tensor)
            written[name] = {"sha256": writer.digest, "bytes": writer.size}
        parameters = {
            slot.name: {
                "shape": list(slot.shape),
                "dim": slot.partition_dim,
                "parts": [{"tag": TAG, "start": 0, "stop": slot.valid}],
            }
            for slot in slots
        }
        (inner / MANIFEST).write_bytes(checkpoint.manifest_bytes(manifest | {"files": written, "parameters": parameters}))
    files.close()
    return checkpoint.folder_of(out / "checkpoints", manifest["step"])
