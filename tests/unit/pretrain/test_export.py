"""An exported checkpoint is the same model in one file, whatever layout trained it; it loads with one line and maps ids to logits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from uniaudio.cli import cli
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain import checkpoint, load_model
from uniaudio.pretrain.checkpoint import Identity, read_tokenizers
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.export import WEIGHTS, export_checkpoint
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.parallel.layout import Layout
from uniaudio.pretrain.parallel.named_state import make_slot
from uniaudio.pretrain.tensor_file import TensorFileWriter

TOKENIZERS = {"audio": {"name": "codec", "options": {}, "version": "codec/1"}}
VOCABULARY = load_vocabulary("paper")
METRICS = [
    {"step": 2, "loss": 6.0},
    {"step": 3, "loss": 5.5, "unigram": 6.4, "learning_rate": 1e-4},
    {"step": 3, "valid/loss": 5.75, "valid/unigram": 6.5, "valid/loss/task/tts": 5.5, "valid/unigram/task/tts": 6.25},
    {"step": 4, "loss": 1.0, "valid/loss": 1.0},
]


def run_config(folder: Path, precision: str) -> RunConfig:
    model = {"width": 48, "num_heads": 2, "ffn_width": 64, "global_layers": 2, "local_layers": 1, "max_positions": 32, "text_width": 8}
    data = {"shards": "unused", "tasks": ["tts", "sound"], "frames_per_row": 32}
    train = {"output_dir": str(folder), "steps": 20, "precision": precision}
    return RunConfig.model_validate({"model": {**model, "init_std": 0.3}, "data": data, "train": train})


def write_run(folder: Path, precision: str = "fp32") -> MultiScaleTransformer:
    """The checkpoint of step 3 of a run under tensor parallelism 2 as the trainer lays it out; its model in float32."""
    torch.set_num_threads(1)
    run = run_config(folder, precision)
    model = MultiScaleTransformer(run.model, VOCABULARY, num_tasks=2, seed=3).eval()
    path = checkpoint.folder_of(folder / "checkpoints", 3)
    path.mkdir(parents=True)
    files, parameters = {}, {}
    slots = [make_slot(name, parameter, Layout()) for name, parameter in model.named_parameters()]
    for rank in range(2):
        tag, pieces = f"pp00-tp{rank:02d}", {}
        for slot in slots:
            entry = parameters.setdefault(slot.name, {"shape": list(slot.shape), "dim": slot.partition_dim, "parts": []})
            if slot.partition_dim is None:
                pieces[slot.name] = slot.parameter.detach()
                entry["parts"].append({"tag": tag, "start": 0, "stop": 0})
                continue
            first = slot.valid // 2 + 5  # unequal parts
            start, stop = (0, first) if rank == 0 else (first, slot.valid)
            pieces[slot.name] = slot.parameter.detach().narrow(slot.partition_dim, start, stop - start)
            entry["parts"].append({"tag": tag, "start": start, "stop": stop})
        kinds = {f"weights-{tag}.safetensors": {name: piece.bfloat16() if precision == "bf16" else piece for name, piece in pieces.items()}}
        if precision == "bf16":
            kinds[f"optimizer-{tag}.safetensors"] = {f"{name}.master": piece for name, piece in pieces.items()}
        for name, tensors in kinds.items():
            with TensorFileWriter(path / name, [(key, value.dtype, tuple(value.shape)) for key, value in tensors.items()]) as writer:
                for key, value in tensors.items():
                    writer.write(key, value)
            files[name] = {"sha256": writer.digest, "bytes": writer.size}
    identity = Identity(run, VOCABULARY, "run-7", "0123abc", TOKENIZERS)
    manifest = checkpoint.make_manifest(identity, {"step": 3, "row": 12}, files, parameters)
    (path / checkpoint.MANIFEST).write_bytes(checkpoint.manifest_bytes(manifest))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS) + '{"step": 5, "lo')
    return model


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def codes(rows: int, frames: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY.size, (rows, frames, 3), generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def test_export_is_the_same_model(tmp_path: Path) -> None:
    model = write_run(tmp_path / "run")
    assert export_checkpoint(tmp_path / "run", tmp_path / "out").name == "step-00000003"
    loaded = load_model(tmp_path / "out")
    assert not loaded.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.model.get_parameter(name)), f"{name}, padding included"
    ids = codes(2, 7)
    assert torch.equal(loaded(ids), load_model(tmp_path / "run")(ids))
    assert loaded(ids).shape == (2, 7, 3, VOCABULARY.size)
    assert read_tokenizers(tmp_path / "out") == TOKENIZERS


@torch.no_grad()
def test_logits_are_those_of_the_packed_model(tmp_path: Path) -> None:
    """Two rows of one document each, text on some frames, against the model on the batch that the data path would make of them."""
    model = write_run(tmp_path / "run")
    ids, states = codes(2, 6), torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(9))
    places = torch.tensor([[1, 2], [3, -1]])
    packed = Batch(
        codes_BTQ=ids.reshape(1, 12, 3),
        target_mask_BTQ=torch.zeros(1, 12, 3, dtype=torch.int8),
        document_starts_BD=torch.tensor([[0, 6, 12]], dtype=torch.int32),
        prefix_lengths_BD=torch.zeros(1, 3, dtype=torch.int32),
        positions_BT=torch.arange(6, dtype=torch.int32).repeat(2)[None],
        text_states_BSC=states.reshape(1, 4, 8)[:, :3],
        text_positions_BS=torch.tensor([[1, 2, 9]], dtype=torch.int32),
        task_ids_BD=torch.zeros(1, 3, dtype=torch.int32),
    )
    ours = load_model(tmp_path / "run")(ids, text_states_BSC=states, text_positions_BS=places)
    torch.testing.assert_close(ours.reshape(1, 12, 3, -1), model.logits(packed), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("saved", torch.bfloat16), ("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_precision(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    """Of a training in bf16, fp32 gives back the optimizer's weights, which bf16 has rounded."""
    model = write_run(tmp_path / "run", "bf16")
    export_checkpoint(tmp_path / "run", tmp_path / "out", precision=precision)
    weights = load_file(tmp_path / "out" / WEIGHTS)
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    exact = all(torch.equal(weights[name].float(), parameter[: len(weights[name])]) for name, parameter in model.named_parameters())
    assert exact == (precision == "fp32")
    assert load_model(tmp_path / "out", dtype=torch.bfloat16)(codes(1, 2)).dtype == torch.bfloat16


def test_card_has_the_figures_of_its_step(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith(("| held-out", "| training"))]
    assert rows == [
        "| held-out loss, step 3 | 5.7500 | 6.5000 |",
        "| held-out loss task tts, step 3 | 5.5000 | 6.2500 |",
        "| training loss, step 3 | 5.5000 | 6.4000 |",
    ]
    assert "| tasks | tts, sound |" in card and "| code | commit 0123abc |" in card
    assert "uniaudio generate --checkpoint FOLDER --task tts" in card
    assert "3 steps of 256 frames, fp32" in card


def test_exported_again_it_is_the_same_bytes(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    export_checkpoint(tmp_path / "out", tmp_path / "again")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "again" / WEIGHTS).read_bytes()


def test_damaged_checkpoint_and_damaged_export_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "bf16")
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    flip_byte(tmp_path / "out" / WEIGHTS)
    with pytest.raises(UserError, match=r"is damaged \| seen: weights-whole.safetensors: sha256"):
        load_model(tmp_path / "out")
    flip_byte(tmp_path / "run" / "checkpoints" / "step-00000003" / "optimizer-pp00-tp01.safetensors")
    export_checkpoint(tmp_path / "run", tmp_path / "weights")  # does not need the optimizer
    with pytest.raises(UserError, match=r"is damaged \| seen: optimizer-pp00-tp01.safetensors: sha256"):
        export_checkpoint(tmp_path / "run", tmp_path / "masters", precision="fp32")
    assert not (tmp_path / "masters").exists()


def test_command_exports_and_overwrites_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    arguments = ["checkpoint", "export", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0 and "step-00000003; load it with uniaudio.pretrain.load_model(" in result.output
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, UserError) and "there is something already" in str(result.exception)
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="no checkpoint there"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "other")


def test_module_refuses_what_it_cannot_take(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    model = load_model(tmp_path / "run")
    state, place = torch.zeros(1, 1, 8), torch.zeros(1, 1, dtype=torch.int64)
    faults = [
        ({"codes_BTQ": codes(1, 4)[0]}, r"codes_BTQ \| seen: \(4, 3\)"),
        ({"codes_BTQ": codes(1, 4)[..., :2]}, r"allowed: integers of \(B, T, 3\)"),
        ({"codes_BTQ": codes(1, 33)}, r"number of frames \| seen: 33 \| allowed: 1..32"),
        ({"codes_BTQ": codes(1, 4) * 0 + 4212}, r"ids \| seen: 4212..4212 \| allowed: 0..4211"),
        ({"codes_BTQ": codes(1, 4), "text_states_BSC": state}, "come together"),
        ({"codes_BTQ": codes(2, 4), "text_states_BSC": state, "text_positions_BS": place}, r"allowed: \(2, S, 8\) and \(2, S\)"),
        ({"codes_BTQ": codes(1, 4), "prefix_lengths_B": torch.ones(1)}, "trained without prefix-LM"),
    ]
    for arguments, message in faults:
        with pytest.raises(UserError, match=message):
            model(**arguments)


def test_importing_the_package_stays_light() -> None:
    code = "import sys, uniaudio.pretrain; assert callable(uniaudio.pretrain.load_model); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
