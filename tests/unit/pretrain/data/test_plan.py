"""The plan of an epoch: who is in it, how often, in which rows; always the same for the same seed."""

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.clips import ClipTable, load_clips
from uniaudio.pretrain.data.plan import Planner

MODEL = ModelConfig(text_width=8)
TASKS = ("tts", "vc", "se", "svs", "sound", "music", "s_edit")


def make_planner(shards: Path, clips: ClipTable | None = None, split: str = "train", **changes) -> Planner:
    data = DataConfig(
        **{"shards": str(shards), "tasks": TASKS, "frames_per_row": 512, "max_text_states_per_row": 24, "shards_per_block": 2, **changes}
    )
    return Planner(clips or load_clips(shards, split), data, MODEL)


def keys(planner: Planner, epoch: int) -> list[tuple[int, int]]:
    documents = planner.plan(epoch).documents
    return list(zip(documents.task.tolist(), documents.clip.tolist()))


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_document_comes_once_an_epoch(shards, epoch) -> None:
    planner = make_planner(shards)
    clips = planner.clips
    expected = set()
    for index, task in enumerate(planner.tasks):
        kinds = ["speech", "sound", "music", "singing"]
        of_kind = [clip for clip in range(len(clips)) if kinds[clips.kinds[clip]] in task.kinds]
        expected |= {(index, clip) for clip in of_kind if all(clips.rows_of(view)[clip] for view in task.required_views)}
    assert Counter(keys(planner, epoch)) == dict.fromkeys(expected, 1)
    assert {task for task, _ in expected} == set(range(len(TASKS)))


def test_rows_keep_the_fixed_shapes_and_blocks(shards) -> None:
    planner = make_planner(shards, max_documents_per_row=3)
    plan = planner.plan(3)
    sizes = np.diff(plan.row_starts)
    assert plan.row_starts[0] == 0 and plan.row_starts[-1] == len(plan.documents) and sizes.min() >= 1 and sizes.max() == 2
    assert np.add.reduceat(plan.documents.frames, plan.row_starts[:-1]).max() <= 512
    assert np.add.reduceat(plan.documents.states, plan.row_starts[:-1]).max() <= 24
    blocks = planner._blocks(3)[planner.clips.shard[plan.documents.clip]]
    assert (np.diff(blocks) >= 0).all(), "blocks of shards are read one after another"
    assert sorted(np.bincount(planner._blocks(3)).tolist()) == [2, 2]


def test_plan_depends_on_seed_and_epoch_alone(shards) -> None:
    one, two = make_planner(shards), make_planner(shards)
    two.plan(4)
    assert keys(one, 2) == keys(two, 2)
    np.testing.assert_array_equal(one.plan(2).documents.prompt, two.plan(2).documents.prompt)
    assert keys(one, 2) != keys(one, 3)
    assert keys(one, 2) != keys(make_planner(shards, seed=1), 2)


def test_a_task_draws_the_same_whatever_stands_beside_it(shards) -> None:
    def prompts(tasks: tuple[str, ...]) -> dict[int, tuple[int, int]]:
        documents = make_planner(shards, tasks=tasks).plan(0).documents
        chosen = documents.task == tasks.index("tts")
        return {
            clip: pair for clip, *pair in zip(*(column[chosen].tolist() for column in (documents.clip, documents.prompt, documents.crop)))
        }

    assert prompts(("tts",)) == prompts(("vc", "sound", "tts"))


def test_prompt_is_another_clip_of_the_speaker_from_the_block_where_it_can_be(shards) -> None:
    planner = make_planner(shards, prompt_seconds=1.5)
    documents = planner.plan(1).documents
    prompted = documents.prompt >= 0
    clip, prompt, crop = documents.clip[prompted], documents.prompt[prompted], documents.crop[prompted]
    speakers = planner.clips.speakers
    assert (planner.clips.kinds[clip] == planner.clips.kinds[prompt]).all()
    assert prompted.any() and (clip != prompt).all() and (speakers[clip] == speakers[prompt]).all() and (speakers[clip] >= 0).all()
    assert (crop + np.minimum(75, planner.clips.rows_of("audio")[prompt]) <= planner.clips.rows_of("audio")[prompt]).all()
    assert len(set(crop.tolist())) > 5
    block = planner._blocks(1)[planner.clips.shard]
    same = (speakers[clip][:, None] == speakers) & (planner.clips.kinds[clip][:, None] == planner.clips.kinds)
    in_block = (same & (block[clip][:, None] == block)).sum(axis=1) > 1
    assert in_block.any() and (block[clip] == block[prompt])[in_block].all()


def test_prompts_change_with_the_epoch(shards) -> None:
    planner = make_planner(shards, tasks=("vc",))
    first, second = (dict(zip(d.clip.tolist(), d.prompt.tolist())) for d in (planner.plan(0).documents, planner.plan(1).documents))
    assert first.keys() == second.keys() and first != second


def test_a_speaker_alone_in_a_block_is_prompted_from_the_split(write_shards, tmp_path) -> None:
    write_shards(tmp_path, shards=2, clips_per_shard=2, speakers=1)
    planner = make_planner(tmp_path, tasks=("vc",), shards_per_block=1)
    documents = planner.plan(0).documents
    assert sorted(documents.clip.tolist()) == [0, 1]
    assert {int(clip): int(prompt) for clip, prompt in zip(documents.clip, documents.prompt)} == {0: 1, 1: 0}


def test_clips_without_another_of_the_speaker_are_counted(write_shards, tmp_path) -> None:
    write_shards(tmp_path, shards=1, clips_per_shard=12, speakers=5)
    planner = make_planner(tmp_path, tasks=("tts", "se", "sound"))
    assert planner.lacking == {"tts": {}, "se": {}, "sound": {}}
    write_shards(tmp_path, shards=1, clips_per_shard=12, speakers=6)  # speech of speakers 0, 1, 5, 0, 4, 5
    planner = make_planner(tmp_path, tasks=("tts", "se", "sound"))
    assert planner.lacking == {"tts": {"no other clip of the speaker": 2}, "se": {}, "sound": {}}


def test_long_targets_are_cut_or_left_out(write_shards, tmp_path) -> None:
    write_shards(tmp_path, shards=2, frames=(60, 250))
    clips = load_clips(tmp_path, "train")
    cut = make_planner(tmp_path, clips, tasks=("se",), frames_per_row=256).plan(0)
    rows = clips.rows_of("audio")[cut.documents.clip]
    long = 2 * rows + 7 > 256
    assert long.any() and not long.all()
    np.testing.assert_array_equal(cut.documents.target, np.where(long, (256 - 7) // 2, rows))
    assert cut.documents.frames.max() <= 256 and not any(cut.left_out.values())
    skipped = make_planner(tmp_path, clips, tasks=("se",), frames_per_row=256, too_long="skip").plan(0)
    assert sorted(skipped.documents.clip.tolist()) == sorted(cut.documents.clip[~long].tolist())
    assert skipped.left_out["se: longer than a row"] == long.sum()


def test_documents_with_more_text_than_a_row_takes_are_counted(shards) -> None:
    planner = make_planner(shards, tasks=("sound",), max_text_states_per_row=6)
    plan = planner.plan(0)
    wordy = planner.clips.rows_of("text")[planner._eligible[0]] > 6
    assert 0 < wordy.sum() == plan.left_out["sound: more text than a row takes"] == len(wordy) - len(plan.documents)


@pytest.mark.parametrize("mix", [{"alpha": 0.0}, {"weights": {"sound": 0.5, "tts": 0.5}}])
def test_equal_shares_repeat_the_smaller_task(shards, mix) -> None:
    planner = make_planner(shards, tasks=("tts", "sound"), mix=mix)
    frames = np.zeros(2)
    per_clip: Counter[tuple[int, int]] = Counter()
    for epoch in range(20):
        documents = planner.plan(epoch).documents
        frames += np.bincount(documents.task, weights=documents.target, minlength=2)
        per_clip.update(zip(documents.task.tolist(), documents.clip.tolist()))
    assert frames[1] == pytest.approx(frames[0], rel=0.05)
    for task, repeat in enumerate(planner.repeats):
        counts = [count for (its, _), count in per_clip.items() if its == task]
        assert max(counts) - min(counts) <= 1 and min(counts) >= int(20 * repeat), "over epochs every clip gets its share"


def test_weight_zero_switches_a_task_off_in_training_but_not_in_validation(shards) -> None:
    off = {"mix": {"weights": {"sound": 0}}, "tasks": ("tts", "sound")}
    assert set(make_planner(shards, **off).plan(0).documents.task.tolist()) == {0}
    assert set(make_planner(shards, split="valid", **off).plan(0).documents.task.tolist()) == {0, 1}


def test_locate_walks_through_epochs(shards) -> None:
    planner = make_planner(shards)
    sizes = [make_planner(shards).plan(epoch).num_rows for epoch in range(4)]
    walked = [planner.locate(row) for row in range(sum(sizes))]
    assert [(plan.epoch, row) for plan, row in walked] == [(epoch, row) for epoch, size in enumerate(sizes) for row in range(size)]
    plan, row = make_planner(shards).locate(sum(sizes) - 1)
    assert (plan.epoch, row) == (3, sizes[3] - 1)


def test_threads_locate_the_same_rows(shards) -> None:
    """The trainer reads ahead in a thread while it asks for the documents of the step before."""
    alone = make_planner(shards)
    expected = [(alone.locate(row)[0].epoch, alone.locate(row)[1]) for row in range(150)]
    for _ in range(5):
        planner = make_planner(shards, alone.clips)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(planner.locate, range(150)))
        assert [(plan.epoch, row) for plan, row in found] == expected


def test_fingerprint_changes_with_what_the_order_depends_on_and_nothing_else(shards, write_shards, tmp_path) -> None:
    fingerprint = make_planner(shards).fingerprint
    shutil.copytree(shards, tmp_path / "moved")
    assert make_planner(tmp_path / "moved").fingerprint == fingerprint
    for same in ({"workers": 2}, {"rows_per_micro_batch": 3}, {"verify": False}):
        assert make_planner(shards, **same).fingerprint == fingerprint
    other = write_shards(tmp_path / "other", seed=5)
    more = write_shards(tmp_path / "moved", shards=5)
    planners = [make_planner(folder) for folder in (other, more)]
    planners += [
        make_planner(shards, **change) for change in ({"seed": 1}, {"frames_per_row": 500}, {"tasks": TASKS[::-1]}, {"prompt_seconds": 1.0})
    ]
    assert len({fingerprint, *(planner.fingerprint for planner in planners)}) == len(planners) + 1


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"tasks": ("tts", "a_edit")}, {}, r"no clip of the split train serves these tasks.*a_edit: \{'no view text.instruction'"),
        ({"tasks": ("sound",)}, {"text_width": 768}, "model.text_width is not the width of the shards' view text.*seen: 768.*allowed: 8"),
        ({"tasks": ("tts",)}, {"num_codebooks": 8}, "model.num_codebooks exceeds the levels of the shards' view audio.*seen: 8.*up to 4"),
        ({"mix": {"weights": {"ttx": 1}}}, {}, "weights names tasks outside data.tasks.*ttx"),
        ({"tasks": ("tts",), "mix": {"weights": {"tts": 0}}}, {}, "no task with a share above 0"),
        ({"tasks": ("tts", "tts")}, {}, "names a task twice"),
        ({"tasks": ("ttx",)}, {}, "no config of that name in configs/tasks.*ttx.*allowed: a_edit"),
    ],
)
def test_faults_of_the_config_are_named(shards, changes, model, message) -> None:
    data = DataConfig(**{"shards": str(shards), "tasks": TASKS, **changes})
    with pytest.raises(UserError, match=message):
        Planner(load_clips(shards, "train"), data, ModelConfig(**{"text_width": 8, **model}))


def test_rows_too_short_for_any_document_are_refused(shards) -> None:
    with pytest.raises(UserError, match="no document fits data.frames_per_row.*too_long=cut"):
        make_planner(shards, tasks=("tts",), frames_per_row=64).plan(0)


def test_a_folder_without_shards_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no clip of the split train.*uniaudio tokenize"):
        load_clips(tmp_path, "train")
