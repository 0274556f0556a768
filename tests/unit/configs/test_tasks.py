"""Tasks as data: the shipped ones are the paper's, every run names tasks that exist, bad ones are refused by key."""

from pathlib import Path

import pytest

from uniaudio.configs.load import CONFIG_ROOT, load_config, shipped
from uniaudio.configs.run import RunConfig
from uniaudio.configs.tasks import load_task, load_tasks
from uniaudio.errors import UserError

PAPER = {"tts", "vc", "se", "tse", "svs", "sound", "music", "a_edit", "sd", "i_tts", "s_edit"}


MORE = {"asr", "audio_tagging", "plain_tts", "continuation", "infilling"}


def test_the_eleven_tasks_of_the_paper_and_five_more_are_shipped_under_their_names() -> None:
    assert set(shipped("tasks")) == PAPER | MORE
    assert {load_task(name).name for name in shipped("tasks")} == PAPER | MORE


@pytest.mark.parametrize("run", shipped("runs"))
def test_every_run_names_tasks_that_load(run) -> None:
    tasks = load_config(RunConfig, run, folder="runs").data.tasks
    assert tuple(task.name for task in load_tasks(tasks)) == tasks


def test_prompted_tasks_are_those_of_the_paper() -> None:
    assert {name for name in PAPER if load_task(name).needs_prompt} == {"tts", "vc", "tse", "svs"}


def test_views_a_clip_must_have() -> None:
    assert load_task("tse").required_views == ("audio.mixture", "audio")
    assert load_task("s_edit").required_views == ("phone.aligned", "audio")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("tts", "draw: same_speaker", "draw: same_speker", "conditions.1.draw.*same_speker"),
        ("vc", "follows_target: true", "folows_target: true", "unknown key conditions.0.folows_target"),
        ("vc", "follows_target: true", "durations: keep", "durations keep is for phones that follow the target"),
        ("vc", "modality: semantic", "modality: semantic, draw: masked", "draw masked is for audio"),
        ("s_edit", "draw: masked", "draw: masked, mask_seconds: [2, 1]", "mask_seconds must ascend"),
        (
            "s_edit",
            "draw: masked, mask_words_of: phone.aligned, ",
            "",
            "two segments are drawn from the same thing: phone.aligned, audio, audio",
        ),
        ("s_edit", "draw: masked", "draw: masked, mask_words: [0, 2]", "mask_words must ascend"),
        ("s_edit", "mask_words_of: phone.aligned", "mask_words_of: midi", "mask_words_of names a view of phones"),
        ("sound", "target: {view: audio", "target: {draw: same_speaker, view: audio", "the target is the clip's own codes"),
        ("infilling", "draw: after", "draw: masked", "pieces of a view go together.*seen: target middle, conditions before"),
        ("continuation", "draw: rest, ", "", "pieces of a view go together.*seen: target own, conditions before"),
        ("sound", "kinds: [sound]", "kinds: [noise]", "kinds.0.*noise"),
    ],
)
def test_a_bad_task_is_refused(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    text = (CONFIG_ROOT / f"tasks/{name}.yaml").read_text()
    assert old in text
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        load_task(str(path))


def test_prefix_lm_with_a_librarys_attention_is_refused() -> None:
    with pytest.raises(UserError, match="model.attention .*seen: flash_attn"):
        load_config(RunConfig, "paper_1b", folder="runs", overrides=["model.prefix_lm=true", "model.attention=flash_attn"])


def test_prefix_lm_with_loss_on_all_is_refused() -> None:
    with pytest.raises(UserError, match="data.loss_on all.*model.prefix_lm"):
        load_config(RunConfig, "released_1b", folder="runs", overrides=["model.prefix_lm=true"])


def test_negative_shares_are_refused() -> None:
    with pytest.raises(UserError, match="data.mix.*weights.tts is -1"):
        load_config(RunConfig, "paper_1b", folder="runs", overrides=["data.mix.weights.tts=-1"])
