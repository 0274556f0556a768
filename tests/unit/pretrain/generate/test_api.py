"""A checkpoint's model and tokenizers through the Python API and the command line: clips, streams, batches, candidates, limits."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from fake_tokenizers import TOKENIZERS
from tiny_requests import CONFIG, TASKS, VOCABULARY, tiny_model

from uniaudio.configs.data import DataConfig
from uniaudio.configs.run import RunConfig
from uniaudio.configs.tasks import load_task
from uniaudio.configs.train import TrainConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.generate import api, cli
from uniaudio.pretrain.generate.api import Clip, Generator, Options, frame_limits
from uniaudio.pretrain.generate.inputs import Inputs
from uniaudio.pretrain.generate.rank import Ranker
from uniaudio.pretrain.sampling import Sampling


@pytest.fixture(scope="module")
def wav(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wavs") / "voice.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(4_800) / 20), 16_000)
    return path


@pytest.fixture
def generator(monkeypatch) -> Generator:
    monkeypatch.setattr(api, "make_tokenizers", lambda recorded, task: dict(TOKENIZERS))
    data = DataConfig(shards="nowhere", tasks=TASKS, prompt_seconds=0.2)
    run = RunConfig(model=CONFIG, data=data, train=TrainConfig(output_dir="nowhere", steps=1))
    return Generator(tiny_model(), run, VOCABULARY, {}, rows=3)


def test_a_follower_is_as_long_as_its_source_and_its_samples_are_its_codes(generator, wav):
    clip = generator.generate("se", Inputs(source=wav))
    assert clip.codes_TQ.shape == (15, 3)
    assert len(clip.samples) == 4_800
    assert not clip.stopped
    np.testing.assert_array_equal(clip.samples, TOKENIZERS["audio"].decode(clip.codes_TQ))


def test_a_stream_joins_to_the_clip(generator):
    inputs, options = Inputs(text="rain"), Options(min_seconds=0.9, max_seconds=0.9, seed=5)
    parts = list(generator.stream("sound", inputs, options))
    assert len(parts) > 2
    np.testing.assert_allclose(np.concatenate(parts), generator.generate("sound", inputs, options).samples, atol=1e-6)


def test_a_batch_goes_on_past_bad_jobs_and_its_clips_are_those_made_alone(generator, wav):
    jobs = [
        ("se", Inputs(source=wav), Options(seed=1)),
        ("tts", Inputs(text=" "), Options()),
        ("sound", Inputs(text="rain"), Options(max_seconds=0.3, sampling=Sampling(guidance=2))),
        ("vc", Inputs(source=wav, prompt=wav), Options(seed=2)),
    ]
    faults: dict[int, UserError] = {}
    clips = dict(generator.batch(jobs, failed=faults.__setitem__))
    assert sorted(clips) == [0, 2, 3]
    assert "needs words" in str(faults[1])
    for number, clip in clips.items():
        np.testing.assert_array_equal(generator.generate(*jobs[number]).codes_TQ, clip.codes_TQ)
    with pytest.raises(UserError, match="needs words"):
        list(generator.batch(jobs))


def test_the_best_candidate_by_score_is_given_and_the_first_is_the_one_of_its_seed_alone(generator):
    inputs, alone = Inputs(text="rain"), Options(max_seconds=0.3, seed=9)
    best = generator.generate("sound", inputs, Options(max_seconds=0.3, seed=9, candidates=4))
    requests = generator.requests("sound", inputs, Options(max_seconds=0.3, seed=9, candidates=4))
    assert requests[0].seed == 9 and len({request.seed for request in requests}) == 4
    clips = [generator.generate("sound", inputs, Options(max_seconds=0.3, seed=request.seed)) for request in requests]
    assert best.score == pytest.approx(max(clip.score for clip in clips), abs=1e-5)
    np.testing.assert_array_equal(clips[0].codes_TQ, generator.generate("sound", inputs, alone).codes_TQ)


def test_candidates_are_ranked_by_what_is_heard_and_by_the_voice(monkeypatch, wav):
    clips = [Clip("tts", np.full(4, number), np.zeros((1, 3)), True, score, number) for number, score in enumerate([-1.0, -5.0, -2.0])]
    ranker = Ranker()
    heard = {0: 3, 1: 1, 2: 1}
    monkeypatch.setattr(ranker, "_errors", lambda samples, text, language: heard[int(samples[0])])
    monkeypatch.setattr(ranker, "_likeness", lambda samples, prompt: -abs(samples[0] - 1.0))
    assert ranker.best(clips, "score", Inputs()).seed == 0
    assert ranker.best(clips, "cer", Inputs(text="a")).seed == 2, "the score decides between equals"
    assert ranker.best(clips, "sim", Inputs(prompt=wav)).seed == 1
    with pytest.raises(UserError, match="rank cer compares with words"):
        ranker.best(clips, "cer", Inputs())
    with pytest.raises(UserError, match="rank sim compares with the speaker's recording"):
        ranker.best(clips, "sim", Inputs())


@pytest.mark.parametrize(
    ("options", "room", "expected"),
    [({}, 3000, (10, 1000)), ({}, 400, (10, 400)), ({"max_seconds": 4}, 3000, (10, 200)), ({"min_seconds": 2}, 3000, (100, 1000))],
)
def test_limits_without_a_source(options, room, expected):
    assert frame_limits(load_task("sound"), {}, Options(**options), room) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (70, 70)), ({"max_seconds": 1}, (50, 50)), ({"min_seconds": 1}, (50, 70)), ({"min_seconds": 2}, (100, 100))],
)
def test_limits_of_a_task_that_follows_its_source(options, expected):
    assert frame_limits(load_task("se"), {"audio.noisy": np.zeros((70, 3))}, Options(**options), 3000) == expected


def test_no_room_an_unknown_task_and_no_candidates_are_refused(generator):
    with pytest.raises(UserError, match="leave no room for the audio"):
        frame_limits(load_task("sound"), {}, Options(), 5)
    with pytest.raises(UserError, match=r"does not know this task \| seen: singing \| allowed: tts, vc"):
        generator.task("singing")
    with pytest.raises(UserError, match="candidates"):
        Options(candidates=0)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match=r"max_seconds \| seen: .* \| allowed: 0\.02 or more"):
            Options(max_seconds=seconds)
    with pytest.raises(UserError, match="this machine has no CUDA device"):
        Generator.load("nowhere", device="cuda")


@pytest.fixture
def command(generator, monkeypatch):
    monkeypatch.setattr(cli.Generator, "load", lambda path, **options: generator)

    def run(*words: str) -> tuple[str, Exception | None]:
        done = CliRunner().invoke(cli.generate, ["--checkpoint", "run", *words])
        return done.stdout, done.exception

    return run


def test_a_manifest_becomes_a_folder_and_a_clip_does_not_depend_on_its_neighbours(command, wav, tmp_path):
    rows = [{"id": "clean", "task": "se", "source": str(wav)}, {"id": "empty", "text": " "}, {"id": "rain", "text": "rain"}]
    for name, chosen in (("all", rows), ("one", rows[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
        words = ["--manifest", str(tmp_path / f"{name}.jsonl"), "--task", "sound", "--max-seconds", "0.3", "--out", str(tmp_path / name)]
        out, fault = command(*words, "--json")
        facts = json.loads(out)
        assert (facts["clips"], facts["failed"]) == ((2, 1) if name == "all" else (1, 0))
        assert (fault is None) == (name == "one")
        assert name == "one" or "1 of 3 requests failed, the first empty: task sound needs words" in str(fault)
        assert name == "one" or (isinstance(fault, UserError) and fault.exit_code == 3)
    lines = [json.loads(line) for line in (tmp_path / "all" / "results.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["clean", "empty", "rain"]
    assert (tmp_path / "all" / "clean.png").exists()
    assert (tmp_path / "all" / "rain.wav").read_bytes() == (tmp_path / "one" / "rain.wav").read_bytes()


def test_an_input_beside_a_manifest_goes_to_the_rows_whose_task_takes_it(command, wav, tmp_path):
    rows = [{"id": "clean", "task": "se", "source": str(wav)}, {"id": "other", "task": "vc", "source": str(wav)}]
    manifest, words = (
        tmp_path / "rows.jsonl",
        ["--manifest", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"), "--prompt", str(wav)],
    )
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command(*words)[1] is None
    manifest.write_text(json.dumps(rows[0]))
    assert "--prompt is of no use to task se" in str(command(*words)[1])
    manifest.write_text("\n".join(json.dumps(row | {"prompt": str(wav)}) for row in rows))
    assert "1 of 2 requests failed, the first clean: --prompt is of no use to task se" in str(command(*words[:-2])[1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"all.jsonl:1: not JSON"),
        ('{"id": "a", "txt": "x"}', r"not a request \| seen: \['txt'\] \| allowed: id, task, text"),
        ('{"id": "../a", "text": "x"}', r"id names the file to write \| seen: ../a"),
        ('{"id": "a"}\n{"id": "a"}', r"all.jsonl:2: id was used before \| seen: a"),
    ],
)
def test_a_bad_manifest_is_one_clear_line(command, line, message, tmp_path):
    (tmp_path / "all.jsonl").write_text(line)
    _, fault = command("--manifest", str(tmp_path / "all.jsonl"), "--task", "sound", "--out", str(tmp_path / "out"))
    assert isinstance(fault, UserError)
    assert re.search(message, str(fault))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "sound", "--text", "rain"], "nothing says where the sound goes"),
        (["--text", "rain", "--out", "x.wav"], "no task"),
        (["--manifest", "x.jsonl", "--stream"], "--manifest writes a folder"),
        (["--manifest", "nowhere.jsonl", "--task", "sound", "--out", "x"], "the manifest cannot be read"),
        (["--task", "sound", "--text", "rain", "--out", "x.wav", "--rows", "0"], "--rows"),
        (
            ["--task", "sound", "--text", "rain", "--prompt", "me.wav", "--out", "x.wav"],
            "--prompt is of no use to task sound | seen: me.wav | allowed: with task tts, vc, tse, svs | remedy: leave it out",
        ),
        (["--task", "sound", "--text", "rain", "--out", "/proc/x.wav"], "--out: nothing can be written there | seen: /proc: "),
        (["--task", "sound", "--text", "rain", "--stream", "--candidates", "2"], "--stream plays one candidate as it is made | seen: 2"),
        (
            ["--task", "svs", "--text", "la", "--prompt", "me.wav", "--out", "x.wav"],
            "task svs needs a recording | seen: none | remedy: --source FILE.wav or --midi FILE.mid",
        ),
        (
            ["--task", "se", "--rank", "cer", "--candidates", "2", "--out", "x.wav"],
            "rank cer compares with words",
        ),
        (
            ["--task", "tts", "--text", "hi", "--midi", "a.mid", "--out", "x.wav"],
            "--midi is of no use to task tts | seen: a.mid | allowed: with",
        ),
    ],
)
def test_a_command_that_cannot_work_is_one_clear_line(command, words, message):
    assert message in str(command(*words)[1])


def test_a_bad_input_draws_no_bar(generator, monkeypatch):
    monkeypatch.setattr(cli.Generator, "load", lambda path, **options: generator)
    words = ["--checkpoint", "run", "--task", "tts", "--text", "hello", "--out", "x.wav"]
    done = CliRunner().invoke(cli.generate, words)
    assert "needs a recording" in str(done.exception)
    assert done.output == ""


def test_one_clip_is_written_and_told(command, tmp_path):
    out, fault = command("--task", "sound", "--text", "rain", "--max-seconds", "0.3", "--out", str(tmp_path / "a.wav"), "--json")
    assert fault is None
    facts = json.loads(out)
    assert Path(facts["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == facts["seconds"] * 16_000


def test_the_command_streams_pcm_and_writes_the_same_wav(generator, monkeypatch, tmp_path):
    monkeypatch.setattr(cli.Generator, "load", lambda path, **options: generator)
    words = [
        "--checkpoint",
        "run",
        "--task",
        "sound",
        "--text",
        "rain",
        "--max-seconds",
        "0.4",
        "--stream",
        "--out",
        str(tmp_path / "a.wav"),
    ]
    done = CliRunner().invoke(cli.generate, words)
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert done.stdout_bytes == samples.tobytes() and len(samples)
