"""Documents: what stands in each frame, what the loss counts, and the way back."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.configs.load import shipped
from uniaudio.configs.tasks import load_task
from uniaudio.errors import UserError
from uniaudio.pretrain.data.sequence import MASKED, SequenceBuilder, build_prompt_sequence, build_sequence, revert_sequence
from uniaudio.pretrain.data.tasks import document_frames, fit_target
from uniaudio.pretrain.data.vocabulary import load_vocabulary

TASKS = [load_task(name) for name in shipped("tasks")]
VOCABULARY = load_vocabulary("extended")
WIDE = load_vocabulary("extended", 8)

PHONES = "<phone_start> phone <phone_end>"
PROMPT = "<audio_prompt_start> audio <audio_prompt_end>"
TEXT = "<text_t5_start> <continuous_token> <text_t5_end>"
AUDIO = "<audio_start> audio <audio_end>"
ORDERS = {
    "tts": f"<tts_task> {PHONES} {PROMPT} {AUDIO}",
    "vc": f"<VC_task> <semantic_start> semantic <semantic_end> {PROMPT} {AUDIO}",
    "se": f"<SE_task> {AUDIO} {AUDIO}",
    "tse": f"<Spex_task> {AUDIO} {PROMPT} {AUDIO}",
    "svs": f"<sing_task> <sing_phone_start> sing_phone <sing_phone_end> <sing_midi_start> sing_midi <sing_midi_end> {PROMPT} {AUDIO}",
    "sound": f"<TSS_task> {TEXT} {AUDIO}",
    "music": f"<TTM_task> {TEXT} {AUDIO}",
    "a_edit": f"<Audit_task> {TEXT} {AUDIO} {AUDIO}",
    "sd": f"<Speech_RIR_task> {AUDIO} {AUDIO}",
    "i_tts": f"<InstructTTS_task> {PHONES} {TEXT} {AUDIO}",
    "asr": f"<asr_task> {AUDIO} {PHONES}",
    "audio_tagging": f"<AT_task> {AUDIO} <class_event_start> class_event <class_event_end>",
    "plain_tts": f"<plain_tts_task> {PHONES} {AUDIO}",
    "continuation": f"<lm_task> {PROMPT} {AUDIO}",
    "infilling": f"<infilling_task> {AUDIO} {AUDIO} {AUDIO}",
    "s_edit": f"<speech_edit_task> {PHONES} <audio_start> audio <audio_mask> audio <audio_end> {AUDIO}",
}


def outline(codes: np.ndarray) -> str:
    """Names of the first codes of the frames, runs of one modality as one word."""
    words = [VOCABULARY.token_name(int(code)).split(":")[0].split(".")[0] for code in codes[:, 0]]
    return " ".join(word for index, word in enumerate(words) if index == 0 or word != words[index - 1])


def test_every_shipped_task_has_an_expected_order() -> None:
    assert sorted(ORDERS) == shipped("tasks")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_order_of_the_sequence(task, views_of) -> None:
    sequence = build_sequence(task, views_of(task, 1), VOCABULARY, 3)
    assert outline(sequence.codes_LQ) == f"<start> {ORDERS[task.name]} <end>"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize(
    ("vocabulary", "num_codebooks"), [(VOCABULARY, 3), (VOCABULARY, 1), (WIDE, 8)], ids=["paper3", "paper1", "extended8"]
)
def test_revert_undoes_build(task, vocabulary, num_codebooks, views_of) -> None:
    views = views_of(task, 2)
    sequence = build_sequence(task, views, vocabulary, num_codebooks)
    back = revert_sequence(task, sequence, vocabulary, num_codebooks)
    assert list(back) == [segment.key for segment in task.segments]
    for segment in task.segments:
        expected = views[segment.key]
        np.testing.assert_array_equal(back[segment.key], expected[:, :num_codebooks] if segment.modality == "audio" else expected)
        assert back[segment.key].dtype == expected.dtype
    again = build_sequence(task, back, vocabulary, num_codebooks)
    np.testing.assert_array_equal(again.codes_LQ, sequence.codes_LQ)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_code_lies_in_the_range_of_its_modality(task, views_of) -> None:
    codes = build_sequence(task, views_of(task, 3), VOCABULARY, 3).codes_LQ
    assert 0 <= codes.min() <= codes.max() < VOCABULARY.size
    audio = (codes[:, 0] >= VOCABULARY.modality("audio").start) & (codes[:, 0] < VOCABULARY.modality("audio").stop)
    for level in range(3):
        span = VOCABULARY.audio_level(level)
        assert ((codes[audio, level] >= span.start) & (codes[audio, level] < span.stop)).all()
    assert (codes[~audio] == codes[~audio][:, :1]).all(), "a token that is not audio fills its whole frame"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_loss_counts_the_target_and_its_end(task, views_of) -> None:
    views = views_of(task, 4)
    sequence = build_sequence(task, views, VOCABULARY, 3)
    counted = sequence.target_mask_LQ[:, 0].astype(bool)
    assert (sequence.target_mask_LQ == counted[:, None]).all()
    target = views[task.target.key].reshape(90, -1)
    first = VOCABULARY.modality(task.target.modality).start
    target = target[:, :3] + np.array([128, 1152, 2176]) if task.target.modality == "audio" else np.repeat(target[:, :1] + first, 3, axis=1)
    np.testing.assert_array_equal(sequence.codes_LQ[counted][:-2], target)
    assert [VOCABULARY.token_name(int(code)) for code in sequence.codes_LQ[counted][-2:, 0]] == [task.target.end, "<end>"]


def test_loss_on_all_counts_every_frame(views_of) -> None:
    sequence = build_sequence(TASKS[0], views_of(TASKS[0], 5), VOCABULARY, 3, loss_on="all")
    assert sequence.target_mask_LQ.all()


@pytest.mark.parametrize("loss_on", ["target", "all"])
def test_a_cut_target_does_not_teach_to_stop(loss_on, views_of) -> None:
    task = load_task("vc")
    views = views_of(task, 6)
    whole, cut = (build_sequence(task, views, VOCABULARY, 3, loss_on=loss_on, target_frames=frames) for frames in (None, 40))
    assert len(whole.codes_LQ) - len(cut.codes_LQ) == 2 * (90 - 40), "semantic units are cut with the target"
    assert not cut.target_mask_LQ[-2:].any() and whole.target_mask_LQ[-2:].all()
    assert cut.target_mask_LQ[-3].all()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_prompt_sequence_is_the_head_of_the_document(task, views_of) -> None:
    views = views_of(task, 7)
    whole = build_sequence(task, views, VOCABULARY, 3, prefix_lm=True)
    del views[task.target.key]
    prompt = build_prompt_sequence(task, views, VOCABULARY, 3, prefix_lm=True)
    np.testing.assert_array_equal(prompt.codes_LQ, whole.codes_LQ[: len(prompt.codes_LQ)])
    assert VOCABULARY.token_name(int(prompt.codes_LQ[-1, 0])) == task.target.start
    assert len(prompt.codes_LQ) + 90 + 2 == len(whole.codes_LQ)
    assert prompt.prefix_length == whole.prefix_length == len(prompt.codes_LQ)
    np.testing.assert_array_equal(prompt.text_positions, whole.text_positions)
    assert not prompt.target_mask_LQ.any()


def test_prefix_is_zero_without_prefix_lm(views_of) -> None:
    assert build_sequence(TASKS[0], views_of(TASKS[0], 8), VOCABULARY, 3).prefix_length == 0


@pytest.mark.parametrize("name", ["sound", "i_tts"])
def test_text_states_stand_at_the_continuous_tokens(name, views_of) -> None:
    task = load_task(name)
    views = views_of(task, 9)
    sequence = build_sequence(task, views, VOCABULARY, 3)
    np.testing.assert_array_equal(
        np.flatnonzero(sequence.codes_LQ[:, 2] == VOCABULARY.special("<continuous_token>")), sequence.text_positions
    )
    np.testing.assert_array_equal(sequence.text_states, views["text" if name == "sound" else "text.instruction"])


def test_long_text_is_cut_to_the_paper_limit(views_of) -> None:
    task = load_task("sound")
    views = views_of(task, 10, rows={"text": 130})
    sequence = build_sequence(task, views, VOCABULARY, 3)
    np.testing.assert_array_equal(sequence.text_states, views["text"][:100])


def test_kept_durations_are_fitted_to_the_target(views_of) -> None:
    task = load_task("s_edit")
    views = {**views_of(task, 11), "phone.aligned": np.array([[7, 3], [9, 2]], np.uint16)}
    back = revert_sequence(task, build_sequence(task, views, VOCABULARY, 3), VOCABULARY, 3)
    np.testing.assert_array_equal(back["phone.aligned"], [[7, 3], [9, 87]])
    cut = revert_sequence(task, build_sequence(task, views, VOCABULARY, 3, target_frames=2), VOCABULARY, 3)
    np.testing.assert_array_equal(cut["phone.aligned"], [[7, 2]])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), frames=st.integers(1, 200), limit=st.integers(60, 400), data=st.data())
def test_planned_length_is_the_built_length(task, views_of, seed, frames, limit, data) -> None:
    """Clips whose conditions are shorter or longer than the target, cut to any row, take exactly the frames that the plan says."""
    rows = {segment.key: data.draw(st.integers(1, 150)) for segment in task.conditions}
    views = views_of(task, seed, frames=frames, rows=rows)
    index = {key: np.array([view.shape[0]]) for key, view in views.items()}
    target = fit_target(task, index, limit)
    if target[0] == 0:
        assert document_frames(task, index, index[task.target.key])[0] > limit
        return
    planned = int(document_frames(task, index, target)[0])
    sequence = SequenceBuilder(task, VOCABULARY, 3).build(views, target_frames=int(target[0]))
    assert len(sequence.codes_LQ) == planned <= limit
    assert (target[0] == frames) == (document_frames(task, index, index[task.target.key])[0] <= limit)


def faulty(task_name: str, views_of, **changes) -> tuple:
    task = load_task(task_name)
    return task, {**views_of(task, 12), **changes}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tts", {"audio": np.full((60, 3), 1024, np.uint16)}, "view audio lies outside audio.*seen: 1024.*0..1023"),
        ("tts", {"phone": np.full((6, 2), 306, np.uint16)}, "view phone lies outside phone.*seen: 306"),
        ("s_edit", {"audio": np.full((60, 3), MASKED, np.uint16)}, "view audio lies outside audio"),
        ("svs", {"phone.singing": np.full((6, 2), 68, np.uint16)}, "view phone.singing lies outside sing_phone.*0..67"),
        ("svs", {"phone.singing": np.zeros((6, 2), np.uint16)}, "phones have no durations.*aligns"),
        ("tts", {"audio": np.zeros((60, 2), np.uint16)}, "fewer levels than model.num_codebooks.*seen: 2"),
    ],
)
def test_bad_views_are_refused(name, changes, message, views_of) -> None:
    task, views = faulty(name, views_of, **changes)
    with pytest.raises(UserError, match=message):
        build_sequence(task, views, VOCABULARY, 3)


def test_missing_view_and_missing_levels_are_named(views_of) -> None:
    task, views = faulty("tts", views_of)
    del views["prompt"]
    with pytest.raises(UserError, match="task tts needs prompt"):
        build_sequence(task, views, VOCABULARY, 3)
    with pytest.raises(UserError, match="model.num_codebooks exceeds the audio levels.*seen: 8"):
        build_sequence(task, views, VOCABULARY, 8)


def test_revert_refuses_another_task(views_of) -> None:
    task, views = faulty("tts", views_of)
    sequence = build_sequence(task, views, VOCABULARY, 3)
    with pytest.raises(UserError, match="not a sequence of task vc: frame 1.*<tts_task>.*allowed: <VC_task>"):
        revert_sequence(load_task("vc"), sequence, VOCABULARY, 3)
    with pytest.raises(UserError, match="no <audio_end> behind"):
        revert_sequence(task, replace(sequence, codes_LQ=sequence.codes_LQ[:-2]), VOCABULARY, 3)
    with pytest.raises(UserError, match="the end"):
        revert_sequence(task, replace(sequence, codes_LQ=sequence.codes_LQ[:-1]), VOCABULARY, 3)
