"""Shards that are missing, cut short or changed: named at the step that needs them, or by policy padding where their documents were."""

import shutil
from pathlib import Path

import pytest
import torch
from loaders import VOCABULARY, open_loader, same

from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.documents import Rows
from uniaudio.pretrain.data.loader import Loader


def broken(shards: Path, folder: Path) -> Path:
    shutil.copytree(shards, folder / "shards")
    return folder / "shards"


def flip(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_byte_names_its_shard(shards, tmp_path, workers) -> None:
    copy = broken(shards, tmp_path)
    flip(copy / "train-000002.tar")
    loader = open_loader(copy, workers=workers, shards_per_block=4)
    try:
        with pytest.raises(UserError, match=r"train-000002\.tar is not what its index says: a byte has changed.*shards verify"):
            for step in range(40):
                loader.step_batches(step)
    finally:
        loader.close()
    unchecked = open_loader(copy, verify=False, shards_per_block=4)
    assert len(unchecked.step_batches(0)) == 1


@pytest.mark.parametrize("verify", [True, False])
def test_a_shard_that_disappears_is_named(shards, tmp_path, verify) -> None:
    copy = broken(shards, tmp_path)
    loader = open_loader(copy, verify=verify, shards_per_block=4)
    (copy / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar cannot be opened"):
        for step in range(40):
            loader.step_batches(step)


def test_another_process_found_the_shard_bad(shards, tmp_path) -> None:
    copy = broken(shards, tmp_path)
    loader = open_loader(copy, shards_per_block=4)
    loader.assembler.files._state[:] = 2  # as a worker leaves it behind
    with pytest.raises(UserError, match=r"train-\d+\.tar cannot be used: see above"):
        loader.step_batches(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_made_together_fail_at_the_step_that_cannot_be_made(shards, tmp_path, workers) -> None:
    """However many steps go together, all before the one that reads the bad shard come, and its fault names what is wrong."""
    copy, whole, first_use = broken(shards, tmp_path), open_loader(shards, shards_per_block=1), {}
    for step in range(40):
        for shard in shards_of(whole, step):
            first_use.setdefault(shard, step)
    bad, fault_step = max(first_use.items(), key=lambda used: used[1])
    assert fault_step > 2
    loader = open_loader(copy, shards_per_block=1, workers=workers)
    (copy / f"{bad}.tar").unlink()
    for step in range(fault_step):
        assert same(loader.step_batches(step), whole.step_batches(step))
    with pytest.raises(UserError, match=rf"{bad}\.tar cannot be opened"):
        loader.step_batches(fault_step)
    behind = next(step for step in range(fault_step + 1, 99) if not shards_of(whole, step) & {bad})
    assert same(loader.step_batches(behind), whole.step_batches(behind)), "steps behind it are still themselves"
    loader.close()


def test_a_shard_cut_short_is_refused_at_the_start(shards, tmp_path) -> None:
    copy = broken(shards, tmp_path)
    with (copy / "train-000001.tar").open("r+b") as handle:
        handle.truncate(2000)
    with pytest.raises(UserError, match="train-000001.*points outside its tar of 2000 bytes"):
        open_loader(copy)


def test_a_shard_cut_short_while_it_is_read_is_named(shards, tmp_path) -> None:
    copy = broken(shards, tmp_path)
    loader = open_loader(copy, shards_per_block=4)
    loader.step_batches(0)
    for shard in range(4):
        with (copy / f"train-{shard:06d}.tar").open("r+b") as handle:
            handle.truncate(3000)
    with pytest.raises(UserError, match=r"train-\d+\.tar (ends inside an array|is not as long as its index says)"):
        for step in range(1, 10):
            loader.step_batches(step)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_shards_become_padding_and_are_counted(shards, tmp_path, workers, caplog) -> None:
    """By policy a missing and a changed shard are left out; every document of the others is where it was."""
    copy = broken(shards, tmp_path)
    loader = open_loader(copy, workers=workers, shards_per_block=4, bad_shards="skip", model={"prefix_lm": True})
    whole = open_loader(shards, shards_per_block=4, model={"prefix_lm": True})
    (copy / "train-000001.tar").unlink()
    flip(copy / "train-000002.tar")
    lost = steps = 0
    bad = {"train-000001", "train-000002"}
    with caplog.at_level("WARNING"):
        for step in range(16):
            (got,), (want,), rows = loader.step_batches(step), whole.step_batches(step), whole.step_rows(step)
            gone = {d for d in range(len(rows.documents)) if touched(whole, rows, d) & bad}
            lost += len(gone)
            steps += 1
            compare_but(got, want, rows, gone)
    assert lost == loader.skipped == loader.metrics(steps)["data/skipped_documents"] > 0
    assert {record.args[0] for record in caplog.records if "padding stands for" in record.msg} == bad
    loader.close()


def shards_of(loader: Loader, step: int) -> set[str]:
    """Names of the shards that a step reads."""
    rows = loader.step_rows(step)
    return set().union(*(touched(loader, rows, d) for d in range(len(rows.documents))))


def touched(loader: Loader, rows: Rows, d: int) -> set[str]:
    clips = loader.planner.clips
    both = [int(clip) for clip in (rows.documents.clip[d], rows.documents.prompt[d]) if clip >= 0]
    return {clips.key(clip).split("/")[0] for clip in both}


def compare_but(got: Batch, want: Batch, rows: Rows, gone: set[int]) -> None:
    assert torch.equal(got.document_starts_BD, want.document_starts_BD) and torch.equal(got.positions_BT, want.positions_BT)
    for b in range(2):
        for number, d in enumerate(range(int(rows.starts[b]), int(rows.starts[b + 1]))):
            span = slice(int(want.document_starts_BD[b, number]), int(want.document_starts_BD[b, number]) + int(rows.documents.frames[d]))
            if d in gone:
                assert (got.codes_BTQ[b, span] == VOCABULARY.special("<pad>")).all() and not got.target_mask_BTQ[b, span].any()
                assert got.task_ids_BD[b, number] == -1 and got.prefix_lengths_BD[b, number] == 0
                inside = (got.text_positions_BS[b] >= span.start) & (got.text_positions_BS[b] < span.stop)
                assert not inside.any()
                continue
            assert torch.equal(got.codes_BTQ[b, span], want.codes_BTQ[b, span])
            assert torch.equal(got.target_mask_BTQ[b, span], want.target_mask_BTQ[b, span])
            assert got.task_ids_BD[b, number] == want.task_ids_BD[b, number]
            assert got.prefix_lengths_BD[b, number] == want.prefix_lengths_BD[b, number]
