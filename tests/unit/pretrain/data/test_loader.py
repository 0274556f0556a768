"""The law: first k steps + the rest = all, whatever the ranks, workers and restarts. And the tensors are what batch.py says. (Bad shards:
test_bad_shards.py)"""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loaders import TASKS, VOCABULARY, T, open_loader, same

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import HIDDEN, Batch, document_ids_BT
from uniaudio.pretrain.data.clips import ClipTable, load_clips
from uniaudio.pretrain.data.documents import Rows
from uniaudio.pretrain.data.loader import DataPosition, Loader, can_evaluate, make_loader
from uniaudio.pretrain.data.plan import Planner, place
from uniaudio.pretrain.data.sequence import Sequence, revert_sequence
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.tokenize_farm.schema import TokenizedClip
from uniaudio.tokenize_farm.shard_writer import write_shard


def all_rows(shards: Path, step: int, ranks: int, accumulation: int, position: DataPosition | None = None, **data) -> list[torch.Tensor]:
    """Codes, masks and starts of all rows of a step in global order, gathered from every rank: micro-batch by micro-batch, rank by rank."""
    batches = [
        open_loader(shards, rank=rank, ranks=ranks, accumulation=accumulation, position=position, **data).step_batches(step)
        for rank in range(ranks)
    ]
    together = [batches[rank][micro] for micro in range(accumulation) for rank in range(ranks)]
    return [torch.cat(parts) for parts in zip(*(batch.as_tuple() for batch in together))]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_step_holds_the_same_rows_under_every_layout(shards, ranks) -> None:
    for step in (0, 3):
        assert all(map(torch.equal, all_rows(shards, step, ranks, 8 // ranks), all_rows(shards, step, 1, 8)))


@pytest.fixture(scope="module")
def clips(shards) -> ClipTable:
    return load_clips(str(shards), "train")


SPLITS = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 2), st.integers(1, 3)), min_size=1, max_size=4)
CURRICULUM = {"schedule": [{"step": 4, "weights": {"sound": 0.5}}, {"step": 9, "alpha": 0.3}]}


def plan_of(clips: ClipTable, *, ranks: int, accumulation: int = 1, position: DataPosition = DataPosition(), **data) -> Loader:  # noqa: B008
    """A loader that plans and reads nothing."""
    config = {
        "shards": "unused",
        "tasks": ("tts", "se", "sound"),
        "frames_per_row": T,
        "rows_per_micro_batch": 2,
    }
    config |= {"max_documents_per_row": 8, "max_text_states_per_row": 24, "shards_per_block": 2} | data
    planner = Planner(clips, DataConfig(**config), ModelConfig(text_width=8))
    shape = {"data_parallel_rank": 0, "data_parallel_size": ranks, "gradient_accumulation": accumulation}
    return Loader(planner, None, **shape, position=position, workers=0, pin=False)


def named(rows: Rows) -> list[tuple[int, ...]]:
    """(task, clip, prompt, draw) of each document: with the draw, all that a document is made of."""
    documents = rows.documents
    return list(zip(*(getattr(documents, name).tolist() for name in ("task", "clip", "prompt", "draw"))))


@settings(max_examples=150, deadline=None)
@given(parts=SPLITS, seed=st.integers(0, 3), rows=st.integers(1, 3))
def test_restarts_under_other_layouts_read_the_same_documents(clips, parts, seed, rows) -> None:
    """Each part runs some steps at its own data-parallel size and accumulation, then hands its position over."""
    position, read, count = DataPosition(), [], 0
    for ranks, accumulation, steps in parts:
        loader = plan_of(clips, ranks=ranks, accumulation=accumulation, position=position, seed=seed, rows_per_micro_batch=rows)
        for step in range(position.step, position.step + steps):
            read += named(loader.step_rows(step))
        count += steps * loader.rows_per_step
        position = DataPosition(position.step + steps, loader.first_row(position.step + steps))
        loader.planner.close()
    whole = plan_of(clips, ranks=1, seed=seed, rows_per_micro_batch=count)
    assert read == named(whole.step_rows(0)) and position.row == whole.first_row(1)
    times = Counter((task, clip) for task, clip, *_ in read)
    fewest = (
        min(times.values())
        if len(times) == len(whole.planner.block(0, 0, 0).documents) + len(whole.planner.block(0, 0, 1).documents)
        else 0
    )
    assert max(times.values()) - fewest <= 1, "no document comes again before every other came"
    whole.planner.close()


@settings(max_examples=60, deadline=None)
@given(split=st.integers(0, 14), before=st.sampled_from([1, 2, 4, 8]), after=st.sampled_from([1, 2, 4, 8]))
def test_a_curriculum_goes_through_restarts(clips, split, before, after) -> None:
    """The mix changes after steps 4 and 9; a restart anywhere, under another data-parallel size, reads what each phase has next."""
    one = plan_of(clips, ranks=before, mix=CURRICULUM)
    two = plan_of(clips, ranks=after, mix=CURRICULUM, position=DataPosition(split, one.first_row(split)))
    read: dict[int, list[tuple[int, ...]]] = {0: [], 1: [], 2: []}
    rows: Counter[int] = Counter()
    for step in range(16):
        loader = one if step < split else two
        read[loader.phase(step)] += named(loader.step_rows(step))
        rows[loader.phase(step)] += loader.rows_per_step
    for phase, documents_read in read.items():
        assert documents_read == named(one.planner.rows(phase, 0, rows[phase])[0])
    one.planner.close()
    two.planner.close()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(split=st.integers(1, 6), workers=st.tuples(*[st.sampled_from([0, 2, 4])] * 2), ranks=st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 2))
def test_first_steps_and_resumed_rest_are_all_bytes(shards, split, workers, ranks) -> None:
    """Whatever the workers and the data-parallel size before and after the split: the rows are those of an uninterrupted single process."""
    rank = min(ranks) - 1
    got: list[list[Batch]] = []
    position = DataPosition()
    begin = 0
    for count, size, steps in zip(workers, ranks, (split, 3)):
        loader = open_loader(shards, workers=count, rank=rank, ranks=size, position=position)
        alone = open_loader(shards, rows_per_micro_batch=2 * size, position=position)
        for step in range(begin, begin + steps):
            got.append(loader.step_batches(step))
            want = [tensor[2 * rank : 2 * rank + 2] for tensor in alone.step_batches(step)[0].as_tuple()]
            assert all(map(torch.equal, got[-1][0].as_tuple(), want))
        begin += steps
        assert alone.first_row(begin) == loader.first_row(begin)
        position = DataPosition(begin, loader.first_row(begin))
        loader.close()
        alone.close()


def documents(shards: Path) -> int:
    planner = open_loader(shards).planner
    return sum(len(planner.block(0, 0, block).documents) for block in range(planner.num_blocks))


def rows_of_epoch(loader: Loader, epoch: int = 0) -> int:
    return sum(loader.planner.size(0, epoch, block) for block in range(loader.planner.num_blocks))


def test_an_epoch_of_steps_reads_every_document_once(shards) -> None:
    loader = open_loader(shards, rows_per_micro_batch=1)
    rows = rows_of_epoch(loader)
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


def test_resuming_deep_in_an_epoch_plans_one_block(shards) -> None:
    whole = open_loader(shards, shards_per_block=1)
    at = whole.first_row(25)
    assert place(at)[1] >= 2
    resumed = open_loader(shards, shards_per_block=1, position=DataPosition(25, at))
    assert same(resumed.step_batches(25), whole.step_batches(25))
    assert set(resumed.planner._sizes) <= {(0, *place(at)[:2]), (0, *place(resumed.first_row(26))[:2])}


def test_metrics_tell_epochs_by_task(shards) -> None:
    loader = open_loader(shards, mix={"weights": {"sound": 0.5}, "schedule": [{"step": 40}]})
    repeat = loader.planner.average_repeats(0)["task/sound"]
    early, late, changed = (loader.metrics(step) for step in (0, 39, 40))
    assert early["data/epochs/task/sound"] == 0 and early["data/phase"] == 0 and early["data/row"] == 0
    assert (
        late["data/row"] == 78
        and 0
        < late["data/epochs/task/sound"] / repeat - late["data/epochs/task/tts"] / loader.planner.average_repeats(0)["task/tts"] + 1e-9
        < 1e-8
    )
    same, other = (
        open_loader(shards, ranks=ranks, rows_per_micro_batch=rows).metrics(3)["data/documents"] for ranks, rows in ((2, 1), (2, 2))
    )
    assert same == open_loader(shards).metrics(3)["data/documents"] != other
    assert changed["data/phase"] == 1 and changed["data/epochs/task/sound"] == 0


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


def test_history_is_hidden_inside_targets_of_training_alone(shards) -> None:
    shown, hidden = (open_loader(shards, hide_history=share).step_batches(0)[0] for share in (0.0, 0.4))
    secret = hidden.target_mask_BTQ == HIDDEN
    assert torch.equal(hidden.codes_BTQ, shown.codes_BTQ), "the loss still knows them"
    assert torch.equal((hidden.target_mask_BTQ != 0), shown.target_mask_BTQ == 1)
    assert 0.1 < secret.sum() / shown.target_count < 0.8
    assert torch.equal(secret.any(dim=2), secret.all(dim=2)), "whole frames"
    again = open_loader(shards, hide_history=0.4, workers=2).step_batches(0)[0]
    assert torch.equal(again.target_mask_BTQ, hidden.target_mask_BTQ)
    held_out = open_loader(shards, split="valid", hide_history=0.4).valid_batches(1)[0]
    assert not (held_out.target_mask_BTQ == HIDDEN).any()


UNCLOSED = """
import sys
from loaders import open_loader
loader = open_loader(sys.argv[1], workers=2)
loader.step_batches(0)
for process in __import__("multiprocessing").active_children(): print(process.pid)
"""


def test_an_interpreter_that_ends_gets_rid_of_workers_that_nobody_closed(shards) -> None:
    """As after a fault while the trainer waits for a batch, whose trace holds them: it would wait for them without end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", UNCLOSED, str(shards)], env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    workers = list(map(int, done.stdout.split()))
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)


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
    assert used == len(loader.planner.first_rows(10**6).documents)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (("speech", "sound"), None),
        (("speech",), r"none of 1 clips serves tts: {'no other clip of the speaker': 1}; sound: no clip of its kind \(docs/data\.md"),
        ((), r"no clip in them"),
        (None, r"no shards valid-\*"),
    ],
)
def test_a_training_whose_held_out_clips_serve_no_task_goes_on_without(tmp_path, caplog, kinds, told) -> None:
    """Of a few recordings one may be held out, or none: a speaker alone cannot prompt."""
    views = {"audio": np.zeros((50, 3), np.uint16), "phone": np.zeros((3, 2), np.uint16), "text": np.zeros((2, 8), np.float16)}
    if kinds is not None:
        clips = [TokenizedClip(kind, {"id": kind, "kind": kind, "seconds": 1.0, "speaker": "anna"}, views) for kind in kinds]
        write_shard(tmp_path, "valid", 0, clips, tokenizers={}, dropped={} if kinds else {"silent": ["x"]})
    with caplog.at_level("WARNING"):
        assert can_evaluate(DataConfig(shards=str(tmp_path), tasks=("tts", "sound"))) == (told is None)
    assert not told or re.search(f"nothing to evaluate on in {tmp_path}: {told}", caplog.text)


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
