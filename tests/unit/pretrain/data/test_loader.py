"""The law: first k steps + the rest = all, whatever the ranks, workers and restarts. And the tensors are what batch.py says."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch, document_ids_BT
from uniaudio.pretrain.data.dataset import hide_span, word_spans
from uniaudio.pretrain.data.loader import DataPosition, Loader, make_loader
from uniaudio.pretrain.data.sequence import MASKED, Sequence, revert_sequence
from uniaudio.pretrain.data.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary("paper")
TASKS = ("tts", "vc", "se", "svs", "sound", "music", "s_edit")
T = 400


def open_loader(
    shards: Path,
    *,
    model: dict | None = None,
    split: str = "train",
    rank: int = 0,
    ranks: int = 1,
    accumulation: int = 1,
    position=None,
    **data,
) -> Loader:
    config = {"shards": str(shards), "tasks": TASKS, "frames_per_row": T, "rows_per_micro_batch": 2, "max_documents_per_row": 8}
    config |= {"max_text_states_per_row": 24, "shards_per_block": 2} | data
    return make_loader(
        DataConfig(**config),
        ModelConfig(**{"text_width": 8, **(model or {})}),
        VOCABULARY,
        split=split,
        data_parallel_rank=rank,
        data_parallel_size=ranks,
        gradient_accumulation=accumulation,
        position=position,
    )


def same(one: list[Batch], two: list[Batch]) -> bool:
    pairs = [pair for left, right in zip(one, two, strict=True) for pair in zip(left.as_tuple(), right.as_tuple())]
    return all(torch.equal(left, right) and left.dtype == right.dtype for left, right in pairs)


def global_rows(shards: Path, step: int, ranks: int, accumulation: int, position: DataPosition | None = None) -> torch.Tensor:
    """Codes of all rows of a step in global order, gathered from every rank: micro-batch by micro-batch, rank by rank."""
    batches = [
        open_loader(shards, rank=rank, ranks=ranks, accumulation=accumulation, position=position).step_batches(step)
        for rank in range(ranks)
    ]
    return torch.cat([batches[rank][micro].codes_BTQ for micro in range(accumulation) for rank in range(ranks)])


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_step_holds_the_same_rows_under_every_layout(shards, ranks) -> None:
    for step in (0, 3):
        assert torch.equal(global_rows(shards, step, ranks, 8 // ranks), global_rows(shards, step, 1, 8))


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4),
    seed=st.integers(0, 3),
    rows=st.integers(1, 3),
)
def test_restarts_under_other_layouts_read_the_same_documents(shards, parts, seed, rows) -> None:
    """Each part runs some steps at its own data-parallel size and accumulation, then hands its position over."""
    position, keys = DataPosition(), []
    for ranks, accumulation, steps in parts:
        loader = open_loader(shards, ranks=ranks, accumulation=accumulation, position=position, seed=seed, rows_per_micro_batch=rows)
        for step in range(position.step, position.step + steps):
            info = loader.info(step)
            keys += info["keys"]
        position = DataPosition(position.step + steps, info["next_row"])
    whole = open_loader(shards, seed=seed, rows_per_micro_batch=position.row).info(0)
    assert keys == whole["keys"]
    times = Counter(keys)
    fewest = min(times.values()) if len(times) == documents(shards) else 0
    assert max(times.values()) - fewest <= 1, "no document comes again before every other came"


def documents(shards: Path) -> int:
    return len(open_loader(shards).planner.plan(0).documents)


def test_an_epoch_of_steps_reads_every_document_once(shards) -> None:
    loader = open_loader(shards, rows_per_micro_batch=1)
    rows = loader.planner.plan(0).num_rows
    keys = [key for step in range(rows) for key in loader.info(step)["keys"]]
    assert len(keys) == len(set(keys)) == documents(shards)
    assert [loader.info(step)["epoch"] for step in (rows - 1, rows)] == [0, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(shards, workers) -> None:
    alone, helped = open_loader(shards, accumulation=2), open_loader(shards, accumulation=2, workers=workers)
    try:
        for step in (0, 1, 2, 30, 31, 4):
            assert same(alone.step_batches(step), helped.step_batches(step))
    finally:
        helped.close()


def test_resumed_loader_yields_the_remaining_batches(shards) -> None:
    whole = open_loader(shards)
    resumed = open_loader(shards, position=DataPosition(7, whole.info(6)["next_row"]))
    for step in (7, 8, 20):
        assert same(whole.step_batches(step), resumed.step_batches(step))
    with pytest.raises(UserError, match="a step before the loader's position.*seen: 6.*from 7"):
        resumed.step_batches(6)


def test_batches_hold_what_the_border_says(shards) -> None:
    loader = open_loader(shards, model={"prefix_lm": True})
    seen = set()
    for step in range(12):
        for batch in loader.step_batches(step):
            check_batch(batch, loader)
            seen |= set(batch.task_ids_BD.unique().tolist())
    assert seen == {-1, *range(len(TASKS))}


def check_batch(batch: Batch, loader: Loader) -> None:
    assert [tensor.dtype for tensor in batch.as_tuple()] == [torch.int64, torch.int8, *[torch.int32] * 3, torch.float32, *[torch.int32] * 2]
    assert [tuple(tensor.shape) for tensor in batch.as_tuple()] == [
        (2, T, 3),
        (2, T, 3),
        (2, 8),
        (2, 8),
        (2, T),
        (2, 24, 8),
        (2, 24),
        (2, 8),
    ]
    assert all(tensor.is_contiguous() for tensor in batch.as_tuple())
    ids = document_ids_BT(batch.document_starts_BD, T)
    for b in range(2):
        starts = batch.document_starts_BD[b].tolist()
        used = [start for start in starts if start < T]
        tasks = [task for task in batch.task_ids_BD[b].tolist() if task >= 0]
        assert used == sorted(set(used)) and starts == used + [T] * (8 - len(used)) and used[0] == 0
        assert len(used) - len(tasks) in (0, 1), "only the padding has no task"
        positions, states = batch.text_positions_BS[b], batch.text_states_BSC[b]
        continuous = (batch.codes_BTQ[b, :, 0] == VOCABULARY.special("<continuous_token>")).nonzero()[:, 0]
        assert torch.equal(positions[: len(continuous)].long(), continuous) and (positions[len(continuous) :] == -1).all()
        assert not states[len(continuous) :].any()
        for d, start in enumerate(used):
            end = starts[d + 1] if d + 1 < 8 else T
            assert (ids[b, start:end] == d).all()
            assert torch.equal(batch.positions_BT[b, start:end], torch.arange(end - start, dtype=torch.int32))
            codes = batch.codes_BTQ[b, start:end]
            if d >= len(tasks):
                assert (codes == VOCABULARY.special("<pad>")).all() and not batch.target_mask_BTQ[b, start:end].any()
                assert batch.prefix_lengths_BD[b, d] == 0
                continue
            inside = (positions >= start) & (positions < end)
            document = Sequence(
                codes.numpy(), batch.target_mask_BTQ[b, start:end].numpy(), states[inside].numpy(), positions[inside].numpy(), 0
            )
            views = revert_sequence(loader.planner.tasks[tasks[d]], document, VOCABULARY, 3)
            prefix = int(batch.prefix_lengths_BD[b, d])
            assert VOCABULARY.token_name(int(codes[prefix - 1, 0])) == "<audio_start>" and prefix + len(views["audio"]) + 2 == end - start
            assert batch.target_mask_BTQ[b, start : start + prefix].sum() == 0


def test_batches_carry_the_arrays_of_the_shards(shards) -> None:
    """Every document of a batch, reverted, is its clip's arrays as ShardReader gives them; prompts are 3 s crops of the drawn clip."""
    loader = open_loader(shards, rows_per_micro_batch=1, prompt_seconds=1.5)
    reader, clips = loader.assembler.reader, loader.assembler.clips
    for step in range(20):
        (batch,), (plan, row) = loader.step_batches(step), loader.planner.locate(step)
        for d, place in enumerate(range(plan.row_starts[row], plan.row_starts[row + 1])):
            start = int(batch.document_starts_BD[0, d])
            end = start + int(plan.documents.frames[place])
            inside = (batch.text_positions_BS[0] >= start) & (batch.text_positions_BS[0] < end)
            document = Sequence(
                batch.codes_BTQ[0, start:end].numpy(), np.zeros(0), batch.text_states_BSC[0][inside].numpy(), np.zeros(0), 0
            )
            task = loader.planner.tasks[plan.documents.task[place]]
            views = revert_sequence(task, document, VOCABULARY, 3)
            clip, prompt, crop = (int(column[place]) for column in (plan.documents.clip, plan.documents.prompt, plan.documents.crop))
            target = int(plan.documents.target[place])
            np.testing.assert_array_equal(views["audio"], reader.view(clip, "audio")[:target, :3])
            if task.needs_prompt:
                np.testing.assert_array_equal(views["prompt"], reader.view(prompt, "audio")[crop : crop + 75, :3])
            if task.name == "se":
                np.testing.assert_array_equal(views["audio.noisy"], reader.view(clip, "audio.noisy")[:target, :3])
            if task.name == "sound":
                np.testing.assert_array_equal(views["text"], reader.view(clip, "text"))
            if task.name == "s_edit":
                hidden = (views["audio.masked"] == MASKED).all(axis=1)
                np.testing.assert_array_equal(views["audio.masked"][~hidden], views["audio"][~hidden])
                spans = word_spans(reader.view(clip, "phone.aligned"))
                edges = np.flatnonzero(np.diff(hidden.astype(int), prepend=0, append=0))
                assert edges.size == 2 and edges[0] in spans[:, 0] and edges[1] in (*spans[:, 1], target)
        assert clips.key(clip).startswith("train-")


@pytest.mark.parametrize("frames", [3, 30, 200])
def test_a_hidden_span_lies_inside_and_varies(shards, frames) -> None:
    segment = open_loader(shards).planner.tasks[-1].conditions[1]
    view = np.zeros((220, 4), np.uint16)
    spans = set()
    for draw in range(40):
        hidden = np.flatnonzero((hide_span(view, segment, frames, draw) == MASKED).all(axis=1))
        assert hidden[-1] < frames and hidden[-1] - hidden[0] + 1 == len(hidden) and min(frames, 10) <= len(hidden) <= 50
        spans.add((hidden[0], len(hidden)))
    assert len(spans) > 15 or frames == 3
    assert not view.any(), "the clip's own array is left alone"


def test_hidden_words_are_whole_and_one_after_another(shards) -> None:
    segment = open_loader(shards).planner.tasks[-1].conditions[1]
    # <sil> 5 frames | a word of 2 phones, 8 frames | <wb> | a word of 1 phone, 4 frames | , 6 frames | a word with an <unk>, 10 frames
    phones = np.array([[0, 5], [20, 3], [21, 5], [2, 0], [30, 4], [3, 6], [40, 6], [1, 4]], np.uint16)
    assert word_spans(phones).tolist() == [[5, 13], [13, 17], [23, 33]]
    view = np.zeros((33, 4), np.uint16)
    for frames, allowed in ((33, {(5, 13), (13, 17), (23, 33), (5, 17), (13, 33)}), (28, {(5, 13), (13, 17), (23, 28), (5, 17), (13, 28)})):
        seen = set()
        for draw in range(60):
            hidden = np.flatnonzero((hide_span(view, segment, frames, draw, phones) == MASKED).all(axis=1))
            seen.add((int(hidden[0]), int(hidden[-1]) + 1))
        assert seen == allowed
    silence = np.array([[0, 33]], np.uint16)
    assert (hide_span(view, segment, 33, 1, silence) == MASKED).any(), "without words, a span of seconds"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_held_out_batches_are_the_same_under_every_layout(shards, ranks) -> None:
    alone = open_loader(shards, split="valid").valid_batches(5)
    loaders = [open_loader(shards, split="valid", rank=rank, ranks=ranks) for rank in range(ranks)]
    parts = [loader.valid_batches(5) for loader in loaders]
    assert len({len(part) for part in parts}) == 1, "every rank takes part in every collective call"
    together = [part[turn] for turn in range(len(parts[0])) for part in parts]
    assert same(together[: len(alone)], alone)
    assert sum(batch.target_count for batch in together[len(alone) :]) == 0
    assert open_loader(shards, split="valid").valid_batches(10**6)[-1].codes_BTQ.shape == (2, T, 3)


def test_held_out_batches_hold_every_document_once(shards) -> None:
    loader = open_loader(shards, split="valid")
    used = sum(int((batch.task_ids_BD >= 0).sum()) for batch in loader.valid_batches(10**6))
    assert used == len(loader.planner.plan(0).documents)


def broken(shards: Path, folder: Path) -> Path:
    shutil.copytree(shards, folder / "shards")
    return folder / "shards"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_byte_names_its_shard(shards, tmp_path, workers) -> None:
    copy = broken(shards, tmp_path)
    tar = copy / "train-000002.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    loader = open_loader(copy, workers=workers, shards_per_block=4)
    try:
        with pytest.raises(UserError, match=r"train-000002\.tar is not what its sidecar says: a byte has changed.*shards verify"):
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
    with pytest.raises(UserError, match=r"train-000001\.tar"):
        for step in range(40):
            loader.step_batches(step)


def test_a_shard_cut_short_is_refused_at_the_start(shards, tmp_path) -> None:
    copy = broken(shards, tmp_path)
    with (copy / "train-000001.tar").open("r+b") as handle:
        handle.truncate(2000)
    with pytest.raises(UserError, match="train-000001.*points outside its tar of 2000 bytes"):
        open_loader(copy)


def test_codes_of_another_vocabulary_name_the_document(shards, tmp_path) -> None:
    table = tmp_path / "small.yaml"
    table.write_text((Path(__file__).parents[4] / "configs/vocabularies/paper.yaml").read_text().replace("entries: 1024", "entries: 512"))
    data = DataConfig(shards=str(shards), tasks=("sound",), frames_per_row=512, max_text_states_per_row=64)
    loader = make_loader(data, ModelConfig(text_width=8), load_vocabulary(str(table)))
    with pytest.raises(UserError, match=r"sound/train-\d+/clip-\d+: a code of view audio lies outside audio.*0\.\.511"):
        loader.step_batches(0)


def test_a_run_without_text_shares_one_zero_tensor(shards) -> None:
    loader = open_loader(shards, tasks=("tts",))
    one, two = loader.step_batches(0)[0], loader.step_batches(1)[0]
    assert one.text_states_BSC.data_ptr() == two.text_states_BSC.data_ptr() and not one.text_states_BSC.any()
