"""Evaluation on random shards with a tiny model: what goes in comes back out, likelihood by hand, rows that bound the model, the report."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from random_shards import write_random_shards

from uniaudio.cli import cli as command_line
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.sequence import SequenceBuilder
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.evaluation import cli, evaluate, report, scores
from uniaudio.pretrain.evaluation.evaluate import Evaluator, Plan, unigram_codes
from uniaudio.pretrain.evaluation.held_out import HeldOutTask
from uniaudio.pretrain.evaluation.likelihood import likelihood
from uniaudio.pretrain.evaluation.scores import Heard, Judge, Models, measures_of
from uniaudio.pretrain.evaluation.statistics import weighted_mean
from uniaudio.pretrain.generate import inputs
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.tokenize_farm.shard_reader import ShardReader

VOCABULARY = load_vocabulary("paper", 3)
TASKS = ("tts", "sound", "se")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    torch.set_num_threads(1)
    shards = tmp_path_factory.mktemp("evaluation") / "shards"
    write_random_shards(shards, clips=24, valid_clips=36, codebooks=4, text_width=8, frames=(20, 60), clips_per_shard=12)
    model = {"width": 32, "num_heads": 2, "ffn_width": 64, "global_layers": 1, "local_layers": 1, "max_positions": 256, "text_width": 8}
    data = {"shards": str(shards), "tasks": TASKS, "frames_per_row": 200, "rows_per_micro_batch": 2, "prompt_seconds": 0.3}
    train = {"output_dir": str(shards.parent / "run"), "steps": 1}
    return RunConfig.model_validate({"model": {**model, "kernels": "torch"}, "data": data, "train": train, "optim": {"lr": 0.01}})


@pytest.fixture(scope="module")
def model(run: RunConfig) -> MultiScaleTransformer:
    return MultiScaleTransformer(run.model, VOCABULARY, num_tasks=len(TASKS), backend="torch", seed=0).eval()


class Codec:
    """Decodes codes to a wave whose sample is the first code of its frame."""

    def decode(self, codes_TQ: np.ndarray) -> np.ndarray:
        return np.repeat(codes_TQ[:, 0].astype(np.float32) / 1024, 320)


@pytest.fixture
def evaluator(run: RunConfig, model: MultiScaleTransformer, monkeypatch: pytest.MonkeyPatch) -> Evaluator:
    monkeypatch.setattr(evaluate, "make_codec", lambda recorded: Codec())
    monkeypatch.setattr(scores.speech, "dnsmos", lambda samples: {"overall": float(len(samples))})
    return Evaluator(model, run, VOCABULARY, {})


@pytest.mark.parametrize("task", TASKS)
def test_documents_come_back_as_their_clips_have_them(run: RunConfig, task: str) -> None:
    held_out = HeldOutTask(run, VOCABULARY, task, rows=8)
    documents = held_out.documents(5)
    assert len({document.clip for document in documents}) == 5
    for document in documents:
        shard, key = document.clip.split("/")
        with ShardReader(Path(run.data.shards) / f"{shard}.tar") as reader:
            clip = reader.index.keys.tolist().index(key)
            assert np.array_equal(document.target_TQ, reader.view(clip, "audio")[:, :3])
            assert document.meta == reader.meta(clip)
        whole = SequenceBuilder(held_out.task, VOCABULARY, 3).build({**document.views, "audio": document.target_TQ})
        assert np.array_equal(whole.codes_LQ[: len(document.prompt.codes_LQ)], document.prompt.codes_LQ)
        assert np.array_equal(document.prompt.text_states, whole.text_states)


def test_a_task_without_held_out_clips_is_named(run: RunConfig, tmp_path: Path) -> None:
    write_random_shards(tmp_path / "shards", clips=12, valid_clips=3, codebooks=3, text_width=8, frames=(20, 30), clips_per_shard=12)
    other = run.model_copy(update={"data": run.data.model_copy(update={"shards": str(tmp_path / "shards")})})
    with pytest.raises(UserError, match="sound"):
        HeldOutTask(other, VOCABULARY, "sound", rows=4)


def test_of_all_tasks_those_without_held_out_clips_are_passed_over(evaluator: Evaluator) -> None:
    evaluator.run = evaluator.run.model_copy(update={"data": evaluator.run.data.model_copy(update={"shards": "nowhere"})})
    assert list(evaluator.evaluate(Plan(("se",), clips=0, pass_over=True))) == []
    with pytest.raises(UserError):
        next(iter(evaluator.evaluate(Plan(("se",), clips=0))))


def test_a_host_that_can_only_decode_evaluates(run: RunConfig, model: MultiScaleTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, options: dict[str, object]) -> SimpleNamespace:
        if name != "codec":
            raise UserError(f"tokenizer {name} needs a package that a GPU host lacks")
        return SimpleNamespace(name="codec", version="1", decode=Codec().decode)

    monkeypatch.setattr(inputs, "make_tokenizer", make)
    recorded = {view: {"name": name, "options": {}, "version": f"{name}/1"} for view, name in (("audio", "codec"), ("phone", "phones"))}
    (found,) = Evaluator(model, run, VOCABULARY, recorded).evaluate(Plan(("tts",), clips=2, rows=2, measures=()))
    assert len(found.codes) == 2 and all(len(clip["resynthesis"]) > 0 for clip in found.audio.values())


def test_likelihood_is_that_of_the_logits(run: RunConfig, model: MultiScaleTransformer) -> None:
    batches = HeldOutTask(run, VOCABULARY, "tts", rows=4).batches
    found = likelihood(model, batches, vocabulary_size=VOCABULARY.size)
    losses, hits = [], []
    with torch.inference_mode():
        for batch in batches:
            logits = model.logits(batch)[..., : VOCABULARY.size].log_softmax(dim=-1)
            mask = batch.target_mask_BTQ.bool()
            losses.append(-logits.gather(-1, batch.codes_BTQ[..., None])[..., 0][mask])
            hits.append((logits.argmax(-1) == batch.codes_BTQ)[mask].float())
    assert found.loss.mean == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert found.accuracy.mean == pytest.approx(float(torch.cat(hits).mean()), abs=1e-6)
    assert found.loss.low < found.loss.mean < found.loss.high and found.documents == found.loss.count > 4
    assert np.mean(found.loss_by_level) == pytest.approx(found.loss.mean, rel=0.05) and 0 < found.unigram < math.log(1024)


def test_structures_without_a_local_stack_are_compared_by_their_likelihood(run: RunConfig) -> None:
    shape = run.model.model_copy(update={"structure": "delay", "local_layers": 0})
    other = Evaluator(
        MultiScaleTransformer(shape, VOCABULARY, num_tasks=3, seed=0), run.model_copy(update={"model": shape}), VOCABULARY, {}
    )
    [result] = other.evaluate(Plan(("se",), clips=0, rows=4))
    plain = HeldOutTask(run, VOCABULARY, "se", rows=4).batches
    assert result.likelihood.documents == sum(int((batch.task_ids_BD >= 0).sum()) for batch in plain)
    assert result.likelihood.loss.mean == pytest.approx(math.log(VOCABULARY.size), abs=1), (
        "of the same documents, in another order of codes"
    )
    with pytest.raises(UserError, match=r"generation is of multi-scale models .*--clips 0"):
        next(iter(other.evaluate(Plan(("se",), clips=1))))


def test_rows_bound_the_model_and_follow_the_source(evaluator: Evaluator) -> None:
    [result] = evaluator.evaluate(Plan(("se",), clips=3, rows=4, measures=("si_sdr", "dnsmos")))
    assert list(result.rows) == ["model", "input", "resynthesis", "unigram"]
    assert set(result.rows["model"]) == set(result.rows["input"]) == {"si_sdr", "dnsmos"} and set(result.rows["resynthesis"]) == {"dnsmos"}
    for rows in result.audio.values():
        assert len(rows["model"]) == len(rows["resynthesis"]) == len(rows["unigram"]), "as long as the noisy source"
    again = next(iter(evaluator.evaluate(Plan(("se",), clips=3, rows=4, measures=("dnsmos",)))))
    assert all(np.array_equal(again.audio[clip]["model"], rows["model"]) for clip, rows in result.audio.items()), "a seed decides the codes"


def test_voices_are_held_against_those_of_others(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate.other_voices(["a", "a", "b"]) == {0: 2, 1: 2, 2: 0} and evaluate.other_voices(["a", "a"]) == {}
    monkeypatch.setattr(scores.speaker, "similarity", lambda prompt, made: float(np.mean(prompt)))
    [result] = evaluator.evaluate(Plan(("tts",), clips=6, rows=8, measures=("sim",)))
    assert "input" not in result.rows, "its only audio is the voice to speak in"
    own, others = result.rows["model"]["sim"], result.rows["shuffled"]["sim"]
    assert 0 < others.count <= own.count and others.mean != own.mean


def test_unigram_codes_keep_lengths_and_levels_of_their_own(run: RunConfig) -> None:
    documents = HeldOutTask(run, VOCABULARY, "tts", rows=8).documents(4)
    made = unigram_codes(documents, seed=0)
    pool = np.concatenate([document.target_TQ for document in documents])
    assert [clip.shape for clip in made] == [document.target_TQ.shape for document in documents]
    assert all(set(clip[:, level]) <= set(pool[:, level]) for clip in made for level in range(3))


def test_an_interval_narrows_with_more_clips_and_leaves_out_what_has_no_value() -> None:
    values = np.random.default_rng(0).normal(5, 1, 400)
    few, many = weighted_mean(values[:20], np.ones(20)), weighted_mean(values, np.ones(400))
    assert few.low < 5 < few.high and many.high - many.low < 0.5 * (few.high - few.low)
    assert weighted_mean(np.array([1.0, math.nan, 9.0]), np.array([2.0, 1.0, 0.0])).mean == 0.5
    assert weighted_mean(np.array([math.nan]), np.ones(1)).count == 0 and str(weighted_mean(np.zeros(0), np.zeros(0))) == "-"


def test_errors_are_pooled_over_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge()
    judge._recogniser = SimpleNamespace(transcribe=lambda samples, language: {3: "abcd", 5: "abxx"}[len(samples)])  # type: ignore[assignment]
    clips = [Heard(np.zeros(n), np.zeros(n), text=text, language="en-us") for n, text in ((3, "abcd"), (5, "abcdefgh"), (7, None))]
    assert judge.judge(["cer"], clips)["cer"].mean == pytest.approx(6 / 12)
    silent = Heard(np.zeros(0), np.zeros(9), text="abcd")
    assert judge.judge(["cer", "mcd"], [silent])["cer"].mean == 1 and judge.judge(["mcd"], [silent])["mcd"].count == 0


def test_measures_are_those_of_the_task_and_unknown_ones_are_named() -> None:
    assert measures_of("tts", ["pesq", "cer"]) == ("cer",) and "frechet" in measures_of("music", None)
    with pytest.raises(UserError, match=r"--measures: unknown \| seen: beauty \| allowed: cer, wer"):
        measures_of("tts", ["beauty"])


def test_measures_by_models_of_the_user_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measures_of("sound", None) == ("frechet",)
    models = Models(classifier=Path("a"), clap=Path("b"))
    assert measures_of("sound", None, models) == ("frechet", "kl", "text_sim") and measures_of("a_edit", ["kl"], models) == ("kl",)
    with pytest.raises(UserError, match=r"--measures: kl needs a model of yours \| seen: none \| remedy: --classifier FOLDER"):
        measures_of("sound", ["kl"])
    monkeypatch.setattr(scores.tagging.Classifier, "divergence", lambda self, reference, made: float(len(reference) - len(made)))
    monkeypatch.setattr(scores.tagging.TextAudio, "similarity", lambda self, text, made: float(len(text)))
    clips = [Heard(np.zeros(3), np.zeros(5), caption="rain"), Heard(np.zeros(4), np.zeros(5))]
    found = Judge(models).judge(["kl", "text_sim"], clips)
    assert found["kl"].mean == 1.5 and found["text_sim"].mean == 4 and found["text_sim"].count == 1


def test_a_run_whose_shards_hold_nothing_held_out_is_one_line(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "find", lambda path: path)
    monkeypatch.setattr(cli.Evaluator, "load", lambda folder, **options: evaluator)
    monkeypatch.setattr(evaluator, "evaluate", lambda plan, tell: iter(()))
    error = CliRunner().invoke(command_line, ["evaluate", str(tmp_path)]).exception
    assert "no held-out clip serves any task of this run" in str(error) and "hold out more recordings" in str(error)


def test_missing_shards_and_a_folder_that_cannot_be_written_are_told_before_any_work(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "find", lambda path: path)
    monkeypatch.setattr(cli.Evaluator, "load", lambda folder, **options: evaluator)
    monkeypatch.setattr(evaluator, "evaluate", lambda plan, tell: pytest.fail("work began"))
    error = CliRunner().invoke(command_line, ["evaluate", str(tmp_path), "--out", "/proc/here"]).exception
    assert str(error).startswith("--out: nothing can be written there | seen: /proc/here: ")
    evaluator.run = evaluator.run.model_copy(update={"data": evaluator.run.data.model_copy(update={"shards": "nowhere"})})
    error = CliRunner().invoke(command_line, ["evaluate", str(tmp_path)]).exception
    assert "data.shards: no such folder of shards | seen: nowhere | remedy: --shards FOLDER" in str(error)


def test_a_folder_without_held_out_shards_is_told_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find", lambda path: pytest.fail("work began"))
    (tmp_path / "train-000000.json").write_text("{}")
    error = CliRunner().invoke(command_line, ["evaluate", "a_run", "--shards", str(tmp_path)]).exception
    assert str(error).startswith(f"--shards: no held-out shards valid-* in this folder | seen: {tmp_path} | remedy: ")


def test_the_command_writes_table_json_wavs_and_mlflow(evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, float] = {}
    monkeypatch.setattr(cli, "find", lambda path: path / "checkpoints" / "step-00000001")
    monkeypatch.setattr(cli.Evaluator, "load", lambda folder, **options: evaluator)
    monkeypatch.setattr(cli, "_track", lambda where, evaluator, about, table, metrics: told.update(metrics))
    words = ["evaluate", str(tmp_path), "--tasks", "se,sound", "--clips", "2", "--rows", "4", "--measures", "dnsmos,si_sdr", "--json"]
    done = CliRunner().invoke(command_line, words, catch_exceptions=False)
    content = json.loads(done.stdout)
    assert content == json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert content["tasks"]["se"]["rows"]["model"]["dnsmos"]["count"] == 2 and content["tasks"]["sound"]["rows"]["model"] == {}
    assert told["se/loss"] == content["tasks"]["se"]["loss"]["mean"] and "se/unigram/si_sdr" in told
    table = (tmp_path / "evaluation" / "evaluation.md").read_text()
    assert "| se |" in table and "## se: 2 generated clips" in table and "dnsmos (higher is better)" in table
    assert len(list((tmp_path / "evaluation" / "audio" / "se").glob("*.wav"))) == 8
    for bad, message in ((["--tasks", "music"], "does not know | seen: music"), (["--measures", "beauty"], "--measures: unknown")):
        assert message in str(CliRunner().invoke(command_line, ["evaluate", str(tmp_path), *bad]).exception)


def test_what_was_generated_elsewhere_is_measured_here(evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find", lambda path: path / "checkpoints" / "step-00000001")
    monkeypatch.setattr(cli.Evaluator, "load", lambda folder, **options: evaluator)
    monkeypatch.setattr(cli, "_track", lambda *told: None)
    words = ["evaluate", str(tmp_path), "--tasks", "se", "--clips", "2", "--rows", "4"]
    made = CliRunner().invoke(command_line, [*words, "--measures", "none"], catch_exceptions=False)
    assert "| se |" in made.stdout and "generated clips" not in made.stdout
    codes = tmp_path / "evaluation" / "codes"
    wavs = {path.name: path.read_bytes() for path in (tmp_path / "evaluation" / "audio" / "se").iterdir()}
    monkeypatch.setattr(evaluator, "_generate", lambda *told: pytest.fail("generated again"))
    again = [*words, "--measures", "dnsmos", "--generated", str(codes), "--out", str(tmp_path / "here")]
    done = CliRunner().invoke(command_line, again, catch_exceptions=False)
    assert "## se: 2 generated clips" in done.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "here" / "audio" / "se").iterdir()} == wavs
    more = CliRunner().invoke(command_line, [*again, "--clips", "3"]).exception
    assert "--generated: no codes of task se for a held-out clip" in str(more)


def test_a_missing_model_is_told_before_anything_is_generated(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*clips: object) -> float:
        raise UserError("speaker similarity needs a package", remedy="install it")

    monkeypatch.setattr(scores.speaker, "similarity", missing)
    monkeypatch.setattr(evaluator, "_generate", lambda *told: pytest.fail("generated first"))
    with pytest.raises(UserError, match="speaker similarity needs a package"):
        next(iter(evaluator.evaluate(Plan(("tse",), clips=2, rows=4, measures=("sim",)))))


def test_the_tasks_before_a_failure_are_kept(evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find", lambda path: path / "checkpoints" / "step-00000001")
    monkeypatch.setattr(cli.Evaluator, "load", lambda folder, **options: evaluator)
    generate = evaluator._generate

    def once(held_out: object, *rest: object) -> object:
        if held_out.task.name == "sound":  # type: ignore[attr-defined]
            raise UserError("the machine is out of something", remedy="give it more")
        return generate(held_out, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluator, "_generate", once)
    words = ["evaluate", str(tmp_path), "--tasks", "se,sound", "--clips", "2", "--rows", "4", "--measures", "none"]
    assert "out of something" in str(CliRunner().invoke(command_line, words).exception)
    assert (tmp_path / "evaluation" / "codes" / "se.npz").is_file()
    assert "| se |" in (tmp_path / "evaluation" / "evaluation.md").read_text()


def test_the_papers_figures_stand_beside_marked_as_reported(evaluator: Evaluator) -> None:
    [result] = evaluator.evaluate(Plan(("tts",), clips=2, rows=2, measures=("dnsmos",)))
    table = report.markdown([result], {"checkpoint": "x"})
    assert "| paper, as reported |" in table and "| unigram |" in table
    assert report._reported(report.PAPER["sound"], "frechet") == "3.12 (other embeddings)"
