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
from uniaudio.pretrain.data.documents import Rows, join
from uniaudio.pretrain.data.plan import Planner, address, place

MODEL = ModelConfig(text_width=8)
TASKS = ("tts", "vc", "se", "svs", "sound", "music", "s_edit")


def make_planner(shards: Path, clips: ClipTable | None = None, split: str = "train", **changes) -> Planner:
    data = DataConfig(
        **{"shards": str(shards), "tasks": TASKS, "frames_per_row": 512, "max_text_states_per_row": 24, "shards_per_block": 2, **changes}
    )
    return Planner(clips or load_clips(shards, split), data, MODEL)


def epoch_rows(planner: Planner, epoch: int, phase: int = 0) -> Rows:
    return join([planner.block(phase, epoch, block) for block in range(planner.num_blocks)])


def keys(planner: Planner, epoch: int) -> list[tuple[int, int]]:
    documents = epoch_rows(planner, epoch).documents
    return list(zip(documents.task.tolist(), documents.clip.tolist()))


def column(clips: ClipTable, name: str, view: str | None = None) -> np.ndarray:
    everyone = np.arange(len(clips))
    return clips.of_view(name, view, everyone) if view else clips.column(name, everyone)


def block_of_shards(planner: Planner, epoch: int) -> np.ndarray:
    """(shards,) block that each is dealt to, seen from the documents."""
    blocks = np.full(planner.clips.num_shards, -1)
    for block in range(planner.num_blocks):
        shards = planner.clips.shard_of(planner.block(0, epoch, block).documents.clip)
        assert (np.isin(blocks[shards], (-1, block))).all()
        blocks[shards] = block
    return blocks


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_document_comes_once_an_epoch(shards, epoch) -> None:
    planner = make_planner(shards)
    clips = planner.clips
    expected = set()
    for index, task in enumerate(planner.tasks):
        kinds = ["speech", "sound", "music", "singing"]
        of_kind = [clip for clip, kind in enumerate(column(clips, "kinds")) if kinds[kind] in task.kinds]
        expected |= {(index, clip) for clip in of_kind if all(column(clips, "rows", view)[clip] for view in task.required_views)}
    assert Counter(keys(planner, epoch)) == dict.fromkeys(expected, 1)
    assert {task for task, _ in expected} == set(range(len(TASKS)))


def test_rows_keep_the_fixed_shapes_and_blocks(shards) -> None:
    planner = make_planner(shards, max_documents_per_row=3)
    for block in range(planner.num_blocks):
        rows = planner.block(0, 3, block)
        sizes = np.diff(rows.starts)
        assert rows.starts[0] == 0 and rows.starts[-1] == len(rows.documents) and sizes.min() >= 1 and sizes.max() == 2
        assert np.add.reduceat(rows.documents.frames, rows.starts[:-1]).max() <= 512
        assert np.add.reduceat(rows.documents.states, rows.starts[:-1]).max() <= 24
    assert sorted(np.bincount(block_of_shards(planner, 3)).tolist()) == [2, 2]
    assert len({tuple(block_of_shards(planner, epoch).tolist()) for epoch in range(6)}) > 1, "dealt anew every epoch"


def test_a_block_needs_no_other_block(shards) -> None:
    walked, alone = make_planner(shards), make_planner(shards)
    epoch_rows(walked, 2)
    one, two = walked.block(0, 2, 1), alone.block(0, 2, 1)
    np.testing.assert_array_equal(one.starts, two.starts)
    for name in ("clip", "prompt", "crop", "draw", "target"):
        np.testing.assert_array_equal(getattr(one.documents, name), getattr(two.documents, name))
    assert len(alone._planned) == 1


def test_plan_depends_on_seed_and_epoch_alone(shards) -> None:
    one, two = make_planner(shards), make_planner(shards)
    two.block(0, 4, 1)
    assert keys(one, 2) == keys(two, 2)
    np.testing.assert_array_equal(epoch_rows(one, 2).documents.prompt, epoch_rows(two, 2).documents.prompt)
    assert keys(one, 2) != keys(one, 3)
    assert keys(one, 2) != keys(make_planner(shards, seed=1), 2)


def test_a_task_draws_the_same_whatever_stands_beside_it(shards) -> None:
    def prompts(tasks: tuple[str, ...]) -> dict[int, tuple[int, int]]:
        documents = epoch_rows(make_planner(shards, tasks=tasks), 0).documents
        chosen = documents.task == tasks.index("tts")
        return {
            clip: pair for clip, *pair in zip(*(column[chosen].tolist() for column in (documents.clip, documents.prompt, documents.crop)))
        }

    assert prompts(("tts",)) == prompts(("vc", "sound", "tts"))


def test_prompt_is_another_clip_of_the_speaker_from_the_block_where_it_can_be(shards) -> None:
    planner = make_planner(shards, prompt_seconds=1.5)
    documents = epoch_rows(planner, 1).documents
    prompted = documents.prompt >= 0
    clip, prompt, crop = documents.clip[prompted], documents.prompt[prompted], documents.crop[prompted]
    voices, kinds, rows = column(planner.clips, "voices"), column(planner.clips, "kinds"), column(planner.clips, "rows", "audio")
    assert (kinds[clip] == kinds[prompt]).all()
    assert prompted.any() and (clip != prompt).all() and (voices[clip] == voices[prompt]).all() and (voices[clip] >= 0).all()
    assert (crop + np.minimum(75, rows[prompt]) <= rows[prompt]).all()
    assert len(set(crop.tolist())) > 5
    block = block_of_shards(planner, 1)[column_shards(planner.clips)]
    same = voices[clip][:, None] == voices
    in_block = (same & (block[clip][:, None] == block)).sum(axis=1) > 1
    assert in_block.any() and (block[clip] == block[prompt])[in_block].all()


def column_shards(clips: ClipTable) -> np.ndarray:
    return clips.shard_of(np.arange(len(clips)))


def test_prompts_change_with_the_epoch(shards) -> None:
    planner = make_planner(shards, tasks=("vc",))
    first, second = (dict(zip(d.clip.tolist(), d.prompt.tolist())) for d in (epoch_rows(planner, epoch).documents for epoch in (0, 1)))
    assert first.keys() == second.keys() and first != second


def test_a_speaker_alone_in_a_block_is_prompted_from_the_split(write_shards, tmp_path) -> None:
    write_shards(tmp_path, shards=4, clips_per_shard=2, speakers=1)  # speech of one speaker is one or two clips of a shard
    planner = make_planner(tmp_path, tasks=("vc",), shards_per_block=1)
    speech = set(np.flatnonzero(column(planner.clips, "kinds") == 0).tolist())
    seen: dict[int, set[int]] = {}
    for epoch in range(12):
        documents = epoch_rows(planner, epoch).documents
        assert set(documents.clip.tolist()) == speech
        for clip, prompt in zip(documents.clip.tolist(), documents.prompt.tolist()):
            seen.setdefault(clip, set()).add(prompt)
    shard = column_shards(planner.clips)
    for clip, prompts in seen.items():
        together = {other for other in speech if shard[other] == shard[clip]} - {clip}
        assert prompts == (together or speech - {clip})


def test_clips_without_another_of_the_speaker_are_counted(write_shards, tmp_path) -> None:
    write_shards(tmp_path, shards=1, clips_per_shard=12, speakers=5)
    planner = make_planner(tmp_path, tasks=("tts", "se", "sound"))
    assert planner.service.lacking == {"tts": {}, "se": {}, "sound": {}}
    write_shards(tmp_path, shards=1, clips_per_shard=12, speakers=6)  # speech of speakers 0, 1, 5, 0, 4, 5
    planner = make_planner(tmp_path, tasks=("tts", "se", "sound"))
    assert planner.service.lacking == {"tts": {"no other clip of the speaker": 2}, "se": {}, "sound": {}}


def test_long_targets_are_cut_or_left_out(write_shards, tmp_path) -> None:
    write_shards(tmp_path, shards=2, frames=(60, 250))
    clips = load_clips(tmp_path, "train")
    planner = make_planner(tmp_path, clips, tasks=("se",), frames_per_row=256)
    cut = epoch_rows(planner, 0)
    rows = clips.of_view("rows", "audio", cut.documents.clip)
    long = 2 * rows + 7 > 256
    assert long.any() and not long.all()
    np.testing.assert_array_equal(cut.documents.target, np.where(long, (256 - 7) // 2, rows))
    assert cut.documents.frames.max() <= 256 and not any(planner.left_out.values())
    planner = make_planner(tmp_path, clips, tasks=("se",), frames_per_row=256, too_long="skip")
    assert sorted(epoch_rows(planner, 0).documents.clip.tolist()) == sorted(cut.documents.clip[~long].tolist())
    assert planner.left_out["se: longer than a row"] == long.sum()


def test_documents_with_more_text_than_a_row_takes_are_counted(shards) -> None:
    planner = make_planner(shards, tasks=("sound",), max_text_states_per_row=6)
    rows = epoch_rows(planner, 0)
    wordy = column(planner.clips, "rows", "text")[column(planner.clips, "kinds") == 1] > 6
    assert 0 < wordy.sum() == planner.left_out["sound: more text than a row takes"] == len(wordy) - len(rows.documents)


def counted(planner: Planner, epochs: int, phase: int = 0) -> tuple[np.ndarray, Counter[tuple[int, int]]]:
    """Hours by task, and how often each (task, clip) comes, over epochs."""
    hours, times = np.zeros(len(planner.tasks)), Counter()
    for epoch in range(epochs):
        documents = epoch_rows(planner, epoch, phase).documents
        seconds = planner.clips.column("seconds", documents.clip)
        hours += np.bincount(documents.task, weights=seconds, minlength=len(hours)) / 3600
        times.update(zip(documents.task.tolist(), documents.clip.tolist()))
    return hours, times


@pytest.mark.parametrize("mix", [{"alpha": 0.0}, {"weights": {"sound": 0.5, "tts": 0.5}}])
def test_equal_shares_repeat_the_smaller_task(shards, mix) -> None:
    planner = make_planner(shards, tasks=("tts", "sound"), mix=mix)
    hours, times = counted(planner, 20)
    assert hours[1] == pytest.approx(hours[0], rel=0.05)
    assert sum(hours) == pytest.approx(20 * planner.service.hours.sum(), rel=0.05), "an epoch stays as long as it was"
    for task, repeat in enumerate(planner.repeats[0][:, 0]):
        counts = [count for (its, _), count in times.items() if its == task]
        assert max(counts) - min(counts) <= 1 and min(counts) >= int(20 * repeat), "over epochs every clip gets its share"


@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_shares_are_the_hours_to_the_power_alpha(shards, alpha) -> None:
    planner = make_planner(shards, tasks=("vc", "sound"), mix={"alpha": alpha})
    hours, _ = counted(planner, 40)
    wanted = planner.service.hours.sum(axis=1) ** alpha
    assert hours / hours.sum() == pytest.approx(wanted / wanted.sum(), rel=0.03)


def test_weight_zero_switches_a_task_off_in_training_but_not_in_validation(shards) -> None:
    off = {"mix": {"weights": {"sound": 0}}, "tasks": ("tts", "sound")}
    assert {task for task, _ in keys(make_planner(shards, **off), 0)} == {0}
    assert {task for task, _ in keys(make_planner(shards, split="valid", **off), 0)} == {0, 1}


def test_datasets_come_by_their_weights_and_leave_the_tasks_shares(shards, write_shards, tmp_path) -> None:
    small = write_shards(tmp_path / "small", shards=2, seed=7)
    clips = load_clips((str(shards), str(small)), "train")
    first = int(clips.first_clips[1])

    def planner_of(**weights: float) -> Planner:
        return make_planner(shards, clips, tasks=("se", "sound"), shards_per_block=4, mix={"datasets": weights})

    even, odd, one = planner_of(), planner_of(small=3.0), planner_of(**{shards.name: 0.0})
    assert set(keys(even, 0)) == set(keys(planner_of(small=1.0), 0)) and max(Counter(keys(even, 0)).values()) == 1
    hours, times = counted(odd, 30)
    rate = [np.mean([count for (_, clip), count in times.items() if (clip >= first) == later]) for later in (False, True)]
    assert rate[1] / rate[0] == pytest.approx(3.0, rel=0.05)
    assert hours / hours.sum() == pytest.approx(even.service.hours.sum(axis=1) / even.service.hours.sum(), rel=0.03)
    assert all(clip >= first for _, clip in keys(one, 0))
    assert clips.key(first) == "small/train-000000/clip-00000"
    assert odd.average_repeats(0)["dataset/small"] == pytest.approx(rate[1] / 30, rel=0.05)


def test_phases_have_mixes_and_orders_of_their_own(shards) -> None:
    schedule = [{"step": 10, "weights": {"sound": 0}}, {"step": 30}]
    planner = make_planner(shards, tasks=("tts", "sound"), mix={"schedule": schedule})
    assert planner.phase_steps == [0, 10, 30]
    orders = [epoch_rows(planner, 0, phase).documents for phase in range(3)]
    assert [set(documents.task.tolist()) for documents in orders] == [{0, 1}, {0}, {0, 1}]
    assert orders[0].clip.tolist() != orders[2].clip.tolist(), "the same mix again is not the same order again"
    plain = make_planner(shards, tasks=("tts", "sound"))
    assert keys(plain, 0) == list(zip(orders[0].task.tolist(), orders[0].clip.tolist())), "a later change leaves what stands before it"


def test_walking_is_the_same_in_steps_of_any_size(shards) -> None:
    planner = make_planner(shards)
    sizes = [planner.size(0, epoch, block) for epoch in range(3) for block in range(2)]
    whole = np.concatenate([planner.rows(0, 0, sum(sizes))[0].documents.draw])
    for step in (1, 7, 50):
        at, drawn = 0, []
        for first in range(0, sum(sizes), step):
            rows, behind = planner.rows(0, at, min(step, sum(sizes) - first))
            assert behind == planner.skip(0, at, len(rows))
            at, drawn = behind, [*drawn, *rows.documents.draw.tolist()]
        assert drawn == whole.tolist() and at == address(3, 0, 0)
    assert place(address(5, 4, 3)) == (5, 4, 3)


def test_threads_plan_the_same_rows(shards) -> None:
    """The trainer reads ahead in a thread while it asks for the documents of the step before."""
    alone = make_planner(shards)
    expected = [alone.block(0, number // 2, number % 2).documents.draw.tolist() for number in range(16)]
    planner = make_planner(shards, alone.clips)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: planner.block(0, number // 2, number % 2).documents.draw.tolist(), range(16)))
    assert found == expected


def test_the_order_names_what_it_depends_on_and_nothing_else(shards, write_shards, tmp_path) -> None:
    order = make_planner(shards).order
    shutil.copytree(shards, tmp_path / "moved")
    assert make_planner(tmp_path / "moved", workers=2).order == order
    for changed in (write_shards(tmp_path / "other", seed=5), write_shards(tmp_path / "moved", shards=5)):
        other = make_planner(changed).order
        assert other["shards"] != order["shards"] and other["tasks"] == order["tasks"]
    assert make_planner(tmp_path / "moved").order["shards"].startswith("5 shards of 60 clips, sha256 ")
    tasks = make_planner(shards, tasks=TASKS[::-1]).order
    assert tasks["tasks"] != order["tasks"] and tasks["shards"] == order["shards"]


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"tasks": ("tts", "a_edit")}, {}, r"no clip of the split train serves these tasks.*a_edit: \{'no view text.instruction'"),
        ({"tasks": ("sound",)}, {"text_width": 768}, "model.text_width is not the width of the shards' view text.*seen: 768.*allowed: 8"),
        ({"tasks": ("tts",)}, {"num_codebooks": 8}, "model.num_codebooks exceeds the levels of the shards' view audio.*seen: 8.*up to 4"),
        (
            {"mix": {"weights": {"ttx": 1}}},
            {},
            r"data.mix.weights names what is not in data.tasks.*ttx.*allowed: tts.*remedy: .*data\.mix\.weights=\{\}",
        ),
        ({"mix": {"schedule": [{"step": 3, "datasets": {"libri": 2}}]}}, {}, "data.mix.datasets names what is not in data.shards.*libri"),
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
        make_planner(shards, tasks=("tts",), frames_per_row=64).rows(0, 0, 1)


def test_a_folder_without_shards_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no clip of the split train.*uniaudio tokenize"):
        load_clips(tmp_path, "train")


@pytest.mark.parametrize("at", [address(0, 0, 5000), address(2, 9, 1)])
def test_a_position_of_other_shards_is_refused(shards, at) -> None:
    planner = make_planner(shards)
    for walk in (planner.rows, planner.skip):
        with pytest.raises(UserError, match="data position of the checkpoint is no row of these shards.*train.init_from"):
            walk(0, at, 1)


def test_two_datasets_of_one_name_are_refused(shards, write_shards, tmp_path) -> None:
    other = write_shards(tmp_path / shards.name)
    with pytest.raises(UserError, match="two folders of data.shards have one name"):
        load_clips((str(shards), str(other)), "train")


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"weights": {"tts": -1}}, "weights.tts is -1"),
        ({"datasets": {"a": -1}}, "datasets.a is -1"),
        ({"schedule": [{"step": 5}, {"step": 5}]}, "steps must ascend"),
    ],
)
def test_bad_mixes_are_refused(mix, message) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(shards="x", tasks=("tts",), mix=mix)
