"""Save and resume: bit for bit on the same layout, within rounding on another, and what happens when the disk lets us down."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from ranks import run_ranks

from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain import checkpoint
from uniaudio.pretrain.checkpoint import find, load_model, published
from uniaudio.pretrain.convert import convert_checkpoint
from uniaudio.pretrain.export import export_checkpoint

FIVE_AFTER_THREE: dict[str, dict[str, Any]] = {
    "one": {},
    "tensor 2": {"tensor_parallel_size": 2},
    "pipeline 2": {"pipeline_parallel_size": 2, "accumulation": 2, "rows": 2},
    "data 2": {"data_parallel_size": 2, "rows": 2},
    "ZeRO 1": {"data_parallel_size": 2, "rows": 2, "zero": 1},
    "ZeRO 3": {"data_parallel_size": 2, "rows": 2, "zero": 3},
    "bf16, ZeRO 1": {"zero": 1, "precision": "bf16"},
}


def go(folder: Path, name: str, options: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Trains under a layout into `folder`; what rank 0 says."""
    run = tiny_run.tiny_run(folder, **options)
    return run_ranks(run.parallel.world_size, folder / f"results {name}", tiny_run.train, config=run.model_dump(mode="json"), **arguments)[
        0
    ]


def losses(result: dict[str, Any]) -> list[float]:
    return [step["loss"] for step in result["steps"]]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[float]]]:
    """Layout -> the folder of an uninterrupted run of 5 steps that saved step 3, and its losses; made once each."""
    made: dict[str, tuple[Path, list[float]]] = {}

    def make(name: str) -> tuple[Path, list[float]]:
        if name not in made:
            folder = tmp_path_factory.mktemp("saved")
            made[name] = folder, losses(go(folder, "whole", FIVE_AFTER_THREE[name], stop=5, save_at=(3,)))
        return made[name]

    return make


@pytest.mark.parametrize("name", FIVE_AFTER_THREE)
def test_resume_is_bit_identical_on_the_same_layout(name: str, saved: Callable[[str], tuple[Path, list[float]]]) -> None:
    folder, whole = saved(name)
    rest = go(folder, "rest", FIVE_AFTER_THREE[name], stop=5, resume=True)
    assert rest["start"] == 3
    assert losses(rest) == whole[3:]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("tensor 2", "one"),
        ("one", "tensor 2"),
        ("pipeline 2", "one"),
        ("data 2", "pipeline 2"),
        ("ZeRO 1", "ZeRO 3"),
        ("ZeRO 3", "tensor 2"),
    ],
)
def test_resume_under_another_layout(written: str, read: str, saved: Callable[[str], tuple[Path, list[float]]]) -> None:
    folder, whole = saved(written)
    rest = go(folder, f"as {read}", FIVE_AFTER_THREE[read], stop=5, resume=True)
    assert rest["start"] == 3
    assert losses(rest) == pytest.approx(whole[3:], rel=1e-5)


def test_checkpoint_is_readable_without_us(saved: Callable[[str], tuple[Path, list[float]]]) -> None:
    from safetensors.torch import load_file

    folder, _ = saved("tensor 2")
    path = find(folder)
    manifest = json.loads((path / "manifest.json").read_text())
    assert {file.name for file in path.iterdir()} == {"manifest.json", *manifest["files"]}
    cuts: list[dict[str, torch.Tensor]] = [{}, {}]
    for rank, cut in enumerate(cuts):
        files = sorted(path.glob(f"weights-pp00-tp0{rank}-*.safetensors"))
        assert len(files) > 1, "written side by side"
        for file in files:
            cut |= load_file(file)
    for name, entry in manifest["parameters"].items():
        pieces = [cut[name] for cut in cuts if name in cut]
        assert len(pieces) == 1 or name.startswith("global_blocks."), "what both ranks have whole is written by one"
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=entry["dim"])
        assert list(joined.shape) == entry["shape"]
    assert manifest["parameters"]["embed.code.weight"]["shape"][0] == 4212, "padding rows are left out"
    assert (
        manifest["mlflow_run_id"] == "run-1"
        and manifest["git_commit"] == "commit-1"
        and manifest["data_position"] == {"step": 3, "row": 12}
    )


def test_load_model_gives_the_trained_model(saved: Callable[[str], tuple[Path, list[float]]]) -> None:
    batch = tiny_run.global_batch(7, 2)
    both = []
    for name in ("one", "tensor 2"):
        model, run, vocabulary = load_model(saved(name)[0], "cpu", torch.float32)
        assert not model.training and vocabulary.size == 4212 and isinstance(run, RunConfig)
        both.append(model.logits(batch))
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-5)
    fresh = tiny_run.make_model(run, vocabulary, tiny_run.Layout(), torch.device("cpu"))
    assert not torch.allclose(fresh.logits(batch), both[0], atol=1e-3)


def test_converted_checkpoint_is_whole_and_goes_on(saved: Callable[[str], tuple[Path, list[float]]], tmp_path: Path) -> None:
    folder, whole = saved("tensor 2")
    path = convert_checkpoint(folder, tmp_path / "converted")
    assert {file.name for file in path.iterdir() if not file.name.startswith("rng-")} == {
        "manifest.json", "weights-whole.safetensors", "optimizer-whole.safetensors",
    }  # fmt: skip
    rest = go(tmp_path / "converted", "rest", {}, stop=5, resume=True)
    assert rest["start"] == 3 and losses(rest) == pytest.approx(whole[3:], rel=1e-5)
    with pytest.raises(UserError, match="there is something already"):
        convert_checkpoint(folder, tmp_path / "converted")


def test_an_export_is_nothing_to_go_on_from(saved: Callable[[str], tuple[Path, list[float]]], tmp_path: Path) -> None:
    """Its moments would be zeros, and the data would begin again, without a word."""
    folder, _ = saved("one")
    export_checkpoint(folder, tmp_path / "export")
    told = r"holds weights without the state of the optimizer: {} \| .* remedy: begin with its weights: train\.init_from"
    with pytest.raises(UserError, match=told.format("there is nothing to go on from")):
        convert_checkpoint(tmp_path / "export", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    shutil.copytree(published(folder / "checkpoints")[0], path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith("optimizer-")}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AssertionError, match=told.format("a training cannot go on from it")):
        go(tmp_path / "run", "rest", {}, stop=5, resume=True)


# ---- faults ----


@pytest.fixture
def two_saved(tmp_path: Path, saved: Callable[[str], tuple[Path, list[float]]]) -> Path:
    """A folder with whole checkpoints of steps 3 and 4."""
    folder = tmp_path / "run"
    shutil.copytree(saved("one")[0] / "checkpoints", folder / "checkpoints")
    go(folder, "more", {}, stop=4, save_at=(4,), resume=True)
    assert [path.name for path in published(folder / "checkpoints")] == ["step-00000003", "step-00000004"]
    return folder


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


LOST = ["data_position", "vocabulary", "files"]  # of the manifest


@pytest.mark.parametrize("file", ["weights-pp00-tp00-000.safetensors", "optimizer-pp00-tp00-000.safetensors", "manifest.json", *LOST])
def test_damaged_newest_falls_back_to_the_one_before(file: str, two_saved: Path) -> None:
    broken = two_saved / "checkpoints" / "step-00000004" / file
    if file == "manifest.json":
        broken.write_text(broken.read_text()[:-20])
    elif file in ("data_position", "vocabulary", "files"):
        manifest = json.loads((broken.parent / "manifest.json").read_text())
        manifest.pop(file)
        (broken.parent / "manifest.json").write_text(json.dumps(manifest))
    else:
        flip_byte(broken)
    assert go(two_saved, "again", {}, stop=4, resume=True)["start"] == 3


def test_all_damaged_is_an_error_not_a_fresh_start(two_saved: Path) -> None:
    for path in published(two_saved / "checkpoints"):
        flip_byte(path / "weights-pp00-tp00-000.safetensors")
    with pytest.raises(AssertionError, match=r"UserError: no whole checkpoint in .*step-00000004.*sha256.*step-00000003"):
        go(two_saved, "again", {}, stop=5, resume=True)
    with pytest.raises(UserError, match="is damaged"):
        load_model(two_saved, "cpu", torch.float32)


def test_another_vocabulary_is_refused_with_both_tables(two_saved: Path) -> None:
    config = tiny_run.tiny_run(two_saved).model_dump(mode="json")
    config["model"]["vocabulary"] = "released"
    with pytest.raises(AssertionError, match=r"UserError: checkpoint .*step-00000004 was made with another vocabulary") as caught:
        run_ranks(1, two_saved / "results other", tiny_run.train, config=config, stop=5, resume=True)
    assert "4211" in str(caught.value), "the tables are beside the message"


def test_another_model_is_refused(two_saved: Path) -> None:
    config = tiny_run.tiny_run(two_saved).model_dump(mode="json")
    config["model"]["ffn_width"] = 128
    with pytest.raises(AssertionError, match=r"UserError: checkpoint .* is of another model: model\.ffn_width \| seen: 128 \| allowed: "):
        run_ranks(1, two_saved / "results other", tiny_run.train, config=config, stop=5, resume=True)


@pytest.mark.parametrize("options", [{}, {"data_parallel_size": 2, "rows": 2, "zero": 1}], ids=["one", "data 2"])
def test_full_disk_keeps_the_checkpoint_before(two_saved: Path, options: dict[str, Any]) -> None:
    before = {file: file.read_bytes() for file in (two_saved / "checkpoints").rglob("*") if file.is_file()}
    with pytest.raises(
        AssertionError, match=r"UserError: cannot write the checkpoint of step 5 .*File too large.*resumes from step-00000004"
    ):
        go(two_saved, "full", options, stop=5, save_at=(5,), resume=True, file_limit=100_000)
    after = {file: file.read_bytes() for file in (two_saved / "checkpoints").rglob("*") if file.is_file()}
    assert after == before, "earlier checkpoints are untouched and nothing half-written is left"


def test_the_newest_are_kept_and_every_so_many_steps_one_for_good(two_saved: Path) -> None:
    (two_saved / "checkpoints" / ".step-00000009.tmp").mkdir()  # of a run that was killed while it wrote
    run = tiny_run.tiny_run(two_saved)
    run = run.model_copy(update={"train": run.train.model_copy(update={"keep_every": 3})})
    run_ranks(1, two_saved / "results", tiny_run.train, config=run.model_dump(mode="json"), stop=6, save_at=(5, 6), resume=True)
    kept = [path.name for path in sorted((two_saved / "checkpoints").iterdir())]
    assert kept == ["step-00000003", "step-00000005", "step-00000006"]


def test_data_parallel_ranks_write_their_shares(saved: Callable[[str], tuple[Path, list[float]]]) -> None:
    parts = {part["tag"] for entry in checkpoint.read_manifest(find(saved("data 2")[0]))["parameters"].values() for part in entry["parts"]}
    assert len(parts) > 1, "of one cut, since there is no tensor or pipeline parallelism"


def test_no_checkpoint_says_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint there.*manifest\.json"):
        find(tmp_path)
