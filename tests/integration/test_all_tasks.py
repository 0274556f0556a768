"""Recordings -> farm -> sequences, for all eleven tasks of the paper and a twelfth that a user adds with two YAML files."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import CONFIG_ROOT, load_config
from uniaudio.configs.tasks import TaskConfig, load_task
from uniaudio.pretrain.data.loader import Loader, make_loader
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.tokenize_farm.corpus.singing import ctm, sing, write_midi
from uniaudio.tokenize_farm.index import list_shards
from uniaudio.tokenize_farm.schema import KINDS
from uniaudio.tokenize_farm.shard_reader import ShardReader
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.simulate.simulator import Simulator
from uniaudio.tokenize_farm.tokenizers.espeak import speak
from uniaudio.tokenize_farm.tokenizers.phones import text_to_phones, words_of
from uniaudio.tokenize_farm.tokenizers.sphinx import SphinxAligner
from uniaudio.tokenize_farm.units import Plan
from uniaudio.tokenize_farm.verify import verify_shard
from uniaudio.tokenize_farm.worker import UnitWorker, make_tokenizers, tokenizer_versions

pytestmark = pytest.mark.slow

TASKS = ("tts", "vc", "se", "tse", "svs", "sound", "music", "a_edit", "sd", "i_tts", "s_edit")
SENTENCES = ("Please leave your message after the tone.", "You have no more new messages.", "Thank you for calling, good morning.")
BANDWIDTH = """
name: bandwidth
token: <BWE_task>
kinds: [speech, sound]
conditions:
  - {view: audio.narrow, modality: audio, start: <audio_start>, end: <audio_end>, follows_target: true}
target: {view: audio, modality: audio, start: <audio_start>, end: <audio_end>}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two people who speak and one who sings, sounds with captions, music; one clip of speech is no recording."""
    folder = tmp_path_factory.mktemp("corpus")
    rows, aligner, rng = [], SphinxAligner(), np.random.default_rng(0)
    for person in ("f2", "m3"):
        for number, text in enumerate(SENTENCES):
            name, samples = f"{person}-{number}", speak(text, "en", variant=person)
            soundfile.write(folder / f"{name}.wav", samples, 16_000)
            common = {"text": text, "speaker": person, "language": "en", "split": "train"}
            rows.append({"id": name, "audio_filepath": f"{name}.wav", "gender": "female" if person == "f2" else "male", **common})
            if person == "f2":
                song = sing(samples, aligner.align(words_of(text_to_phones(text, "en")), samples) or [], Draw(name))
                assert song is not None
                soundfile.write(folder / f"{name}-sung.wav", song.samples, 16_000)
                write_midi(folder / f"{name}.mid", song.notes)
                (folder / f"{name}.ctm").write_text(ctm(name, song.sounds))
                files = {"audio_filepath": f"{name}-sung.wav", "midi": f"{name}.mid", "alignment": f"{name}.ctm"}
                rows.append({"id": f"{name}-sung", "kind": "singing", **files, **common})
    for number, caption in enumerate(("rain on a roof", "a bell", "a dog far away", "wind")):
        kind = "music" if number == 1 else "sound"
        soundfile.write(folder / f"n{number}.wav", 0.1 * rng.normal(size=20_000 + 4_000 * number), 16_000)
        rows.append({"id": f"n{number}", "audio_filepath": f"n{number}.wav", "kind": kind, "caption": caption, "split": "train"})
    (folder / "bad.wav").write_text("no recording")
    rows.append({"id": "bad", "audio_filepath": "bad.wav", "split": "train"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


def farm(corpus: Path, output_dir: Path, *, backwards: bool = False, **changes: object) -> Path:
    """The shipped farm of all tasks with a thirteenth view, as a worker does its units: in any order, what it holds at once may differ."""
    config = load_config(FarmConfig, "all_tasks", folder="farms", overrides=[f"manifest={corpus}", f"output_dir={output_dir}"])
    tree = config.model_dump() | {"clips_per_unit": 4, **changes}
    tree["simulate"]["views"]["audio.narrow"] = {"kinds": ["speech", "sound"], "steps": [{"effect": "band_limit", "hz": [2000, 2000]}]}
    tree["simulate"]["views"]["audio.reverberant"]["steps"] = [{"effect": "room", "rooms": 2, "rt60_seconds": [0.2, 0.3]}]
    config = FarmConfig.model_validate(tree)
    versions = tokenizer_versions(make_tokenizers(config)) | Simulator(config).versions()
    worker = UnitWorker(config, versions)
    units = list(Plan(config.manifest, config, versions))
    dropped = [worker.run(unit).sidecar["dropped"] for unit in (units[::-1] if backwards else units)]
    assert [drops for drops in dropped if drops] == [{"not_audio": ["bad"]}]
    return output_dir


@pytest.fixture(scope="module")
def shards(corpus: Path, tmp_path_factory) -> Path:
    return farm(corpus, tmp_path_factory.mktemp("farm"))


def open_loader(shards: Path, tasks: tuple[str, ...], vocabulary: str = "paper") -> Loader:
    shape = {"frames_per_row": 768, "rows_per_micro_batch": 2, "max_documents_per_row": 16, "max_text_states_per_row": 128}
    data = DataConfig(shards=str(shards), tasks=tasks, **shape)
    model = ModelConfig(text_width=384, num_codebooks=3)
    return make_loader(data, model, load_vocabulary(vocabulary), split="train", data_parallel_rank=0, data_parallel_size=1)


def tasks_built(loader: Loader, names: tuple[str, ...], *, steps: int = 40) -> set[str]:
    """Tasks whose documents come in the first steps; each batch is built and counts targets."""
    seen: set[int] = set()
    for step in range(steps):
        for batch in loader.step_batches(step):
            assert (batch.target_mask_BTQ.sum(dim=(1, 2)) > 0).any()
            seen |= set(batch.task_ids_BD[batch.task_ids_BD >= 0].tolist())
    return {names[index] for index in seen}


def clips_for(shards: Path, task: TaskConfig) -> int:
    """Clips of the task's kinds that have every view it needs."""
    count = 0
    for paths in list_shards(shards):
        with ShardReader(paths.tar) as reader:
            for clip, kind in enumerate(reader.index.kinds.tolist()):
                views = {view for view in reader.index.views.tolist() if reader.index.has(clip, view)}
                count += KINDS[kind] in task.kinds and set(task.required_views) <= views
    return count


def test_every_task_has_documents(shards: Path) -> None:
    assert all(not verify_shard(shard) for shard in list_shards(shards))
    few = {"svs": 3, "sound": 3, "music": 1, "a_edit": 3}
    assert {task: clips_for(shards, load_task(task)) for task in TASKS} == {task: few.get(task, 6) for task in TASKS}
    assert tasks_built(open_loader(shards, TASKS), TASKS) == set(TASKS)


def test_views_of_a_clip_are_frame_for_frame(shards: Path) -> None:
    seen = set()
    for paths in list_shards(shards):
        with ShardReader(paths.tar) as reader:
            for clip in range(len(reader.index.keys)):
                views = {view: reader.view(clip, view) for view in reader.index.views.tolist() if reader.index.has(clip, view)}
                seen |= set(views)
                frames = {view: len(array) for view, array in views.items() if view.startswith(("audio", "midi", "semantic"))}
                frames |= {view: int(array[:, 1].sum()) for view, array in views.items() if view in ("phone.aligned", "phone.singing")}
                assert len(set(frames.values())) == 1, frames
                copies = [
                    array for view, array in views.items() if view.startswith("audio.") and view not in ("audio.original", "audio.edited")
                ]
                assert all(not np.array_equal(copy, views["audio"]) for copy in copies)
                if "audio.edited" in views:
                    assert not np.array_equal(views["audio.edited"], views["audio.original"])
    words = {"text", "text.instruction", "phone", "phone.aligned", "phone.singing", "semantic", "midi"}
    sounds = {"audio", "audio.noisy", "audio.mixture", "audio.reverberant", "audio.original", "audio.edited", "audio.narrow"}
    assert seen == words | sounds


def test_another_worker_in_another_order_makes_the_same_bytes(corpus: Path, shards: Path, tmp_path: Path) -> None:
    again = farm(corpus, tmp_path / "again", backwards=True, batch_seconds=3.0)
    files = [{path.name: path.read_bytes() for path in sorted(folder.glob("train-*"))} for folder in (shards, again)]
    assert files[0] == files[1] and len(files[0]) == 12


def test_a_twelfth_task_is_two_yaml_files(shards: Path, tmp_path: Path) -> None:
    """As in docs/farm.md: a view of the farm's own recipes, a task, and a vocabulary with one more special token."""
    (tmp_path / "bandwidth.yaml").write_text(BANDWIDTH)
    table = yaml.safe_load((CONFIG_ROOT / "vocabularies/paper.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**table, "specials": [*table["specials"], "<BWE_task>"]}))
    tasks = ("tts", str(tmp_path / "bandwidth.yaml"))
    assert clips_for(shards, load_task(tasks[1])) == 9
    assert tasks_built(open_loader(shards, tasks, str(tmp_path / "mine.yaml")), tasks) == set(tasks)
    paper, mine = load_vocabulary("paper"), load_vocabulary(str(tmp_path / "mine.yaml"))
    assert mine.size == paper.size and mine.modality("audio") == paper.modality("audio"), "nothing is renumbered"
