"""The assembler, which fills a micro-batch at once, equals the builder of one document after another: every tensor, every task."""

import numpy as np
import pytest
import torch
from plain import Plain

from uniaudio.configs import DataConfig, ModelConfig
from uniaudio.configs.load import shipped
from uniaudio.configs.tasks import load_tasks
from uniaudio.errors import UserError
from uniaudio.pretrain.data.clips import load_clips
from uniaudio.pretrain.data.loader import make_loader
from uniaudio.pretrain.data.mix import Service
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.tokenize_farm.schema import TokenizedClip
from uniaudio.tokenize_farm.shard_writer import write_shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, write_shards) -> str:
    """Shards whose clips serve all sixteen tasks; audio.noisy and what else follows has other levels than audio in some of them."""
    folder = tmp_path_factory.mktemp("all")
    rng = np.random.default_rng(3)
    for unit in range(3):
        clips = []
        for number in range(10):
            count = int(rng.integers(60, 160))
            views = {name: rng.integers(0, 1024, (count, 4)).astype(np.uint16) for name in ("audio", "audio.edited", "audio.reverberant")}
            views |= {name: rng.integers(0, 1024, (count, 3 + unit)).astype(np.uint16) for name in ("audio.noisy", "audio.mixture")}
            views["audio.original"] = rng.integers(0, 1024, (count + number - 4, 4)).astype(np.uint16)
            phones = int(rng.integers(3, 30))
            lasts = rng.multinomial(count, np.ones(phones) / phones)
            views["phone.aligned"] = np.stack([rng.integers(0, 306, phones), lasts], axis=1).astype(np.uint16)
            views["phone"] = views["phone.aligned"] * np.array([1, 0], np.uint16)
            views["phone.singing"] = np.array([[number, count // 2], [number + 7, count]], np.uint16)
            views["semantic"] = rng.integers(0, 500, count - 1).astype(np.uint16)
            views["midi"] = rng.integers(0, 138, count).astype(np.uint16)
            views["event"] = rng.integers(0, 527, int(rng.integers(1, 6))).astype(np.uint16)
            views |= {name: rng.normal(size=(int(rng.integers(2, 9)), 8)).astype(np.float16) for name in ("text", "text.instruction")}
            kind = ("speech", "sound", "music", "singing")[number % 4]
            clips.append(TokenizedClip(f"c{unit}-{number}", {"kind": kind, "seconds": count / 50, "speaker": f"s{number % 2}"}, views))
        write_shard(folder, "train", unit, clips, tokenizers={})
    return str(folder)


CASES = [(3, {}), (1, {"loss_on": "all"}), (3, {"too_long": "skip"}), (3, {"frames_per_row": 1000, "rows_per_micro_batch": 1})]


@pytest.mark.parametrize(("num_codebooks", "changes"), CASES)
def test_every_tensor_equals_the_plain_builders(shards, num_codebooks, changes) -> None:
    tasks = tuple(shipped("tasks"))
    shape = {"frames_per_row": 300, "rows_per_micro_batch": 2, "max_documents_per_row": 8, "max_text_states_per_row": 24}
    data = DataConfig(**{"shards": shards, "tasks": tasks, "shards_per_block": 2, "prompt_seconds": 1.5, **shape, **changes})
    model = ModelConfig(text_width=8, num_codebooks=num_codebooks, prefix_lm=not changes)
    loader = make_loader(data, model, load_vocabulary("extended", num_codebooks))
    plain, seen = Plain(loader), set()
    for step in range(30):
        (rows,), (batch,) = loader.rank_rows(step), loader.step_batches(step)
        expected = plain.batch(rows)
        for name, one, two in zip(batch.__dataclass_fields__, batch.as_tuple(), expected.as_tuple()):
            assert one.dtype == two.dtype and torch.equal(one, two), name
        seen |= set(rows.documents.task.tolist())
    assert seen == set(range(16)) or changes, "every task occurs"
    loader.close()


def test_codes_outside_their_codebook_in_levels_that_the_model_lacks_do_no_harm(tmp_path) -> None:
    rng = np.random.default_rng(4)
    for unit in range(2):
        made = [(f"c{unit}-{n}", rng.integers(0, 1024, (int(rng.integers(60, 150)), 4)).astype(np.uint16)) for n in range(8)]
        for _, audio in made:
            audio[::7, 3] = 5000
        text = rng.normal(size=(3, 8)).astype(np.float16)
        meta: dict[str, object] = {"kind": "sound", "seconds": 2.0}
        write_shard(
            tmp_path, "train", unit, [TokenizedClip(key, meta, {"audio": audio, "text": text}) for key, audio in made], tokenizers={}
        )
    data = DataConfig(shards=str(tmp_path), tasks=("sound",), frames_per_row=400, rows_per_micro_batch=2, max_text_states_per_row=24)
    loader = make_loader(data, ModelConfig(text_width=8), load_vocabulary("paper"))
    plain = Plain(loader)
    for step in range(6):
        (rows,), (batch,) = loader.rank_rows(step), loader.step_batches(step)
        assert all(map(torch.equal, batch.as_tuple(), plain.batch(rows).as_tuple()))
    wide = make_loader(data, ModelConfig(text_width=8, num_codebooks=4), load_vocabulary("paper", 4))
    for _ in range(2):
        with pytest.raises(UserError, match=r"sound/train-\d+/c\d-\d: a code of view audio lies outside audio.*seen: 5000"):
            wide.step_batches(0)


def test_every_shipped_task_finds_clips(shards) -> None:
    service = Service(load_clips(shards, "train"), load_tasks(tuple(shipped("tasks"))))
    assert (service.counts.sum(axis=1) > 0).all()
