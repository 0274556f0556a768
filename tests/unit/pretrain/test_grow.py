"""Fine-tuning under a larger vocabulary: known tokens keep their rows wherever their ids went, and the model says the same of them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain import checkpoint
from uniaudio.pretrain.checkpoint import Identity
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.vocabulary import Vocabulary, load_vocabulary
from uniaudio.pretrain.grow import load_initial, token_rows
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.parallel.layout import Layout
from uniaudio.pretrain.parallel.named_state import Slot, make_slot
from uniaudio.pretrain.tensor_file import TensorFileWriter

OLD = load_vocabulary("paper", 3)
MORE_PHONES = 20
PHONES = OLD.modality("phone").start


def _moved(name: str, start: int, entries: int, levels: int) -> tuple[str, int, int, int]:
    return name, start + MORE_PHONES * (start > PHONES), entries + MORE_PHONES * (name == "phone"), levels


# one more special token in the place of an unused one, more phones (what follows them moves up), a modality of its own at the end
GESTURES = ("gesture", OLD.size + MORE_PHONES, 50, 1)
GROWN = Vocabulary("grown", OLD.reserved, (*OLD.specials, "<dance_task>"), OLD.mask, (*(_moved(*entry) for entry in OLD.ranges), GESTURES))


def run_config(folder: Path) -> RunConfig:
    model = {"width": 32, "num_heads": 2, "ffn_width": 64, "global_layers": 1, "local_layers": 1, "max_positions": 32, "text_width": 8}
    data = {"shards": "unused", "tasks": ["tts", "sound"], "frames_per_row": 16}
    train = {"output_dir": str(folder), "steps": 20}
    return RunConfig.model_validate({"model": {**model, "init_std": 0.3, "kernels": "torch"}, "data": data, "train": train})


def make_model(folder: Path, vocabulary: Vocabulary, seed: int) -> MultiScaleTransformer:
    torch.set_num_threads(1)
    return MultiScaleTransformer(run_config(folder).model, vocabulary, num_tasks=2, backend="torch", seed=seed).eval()


def slots_of(model: MultiScaleTransformer) -> list[Slot]:
    return [make_slot(name, parameter, Layout()) for name, parameter in model.named_parameters()]


@pytest.fixture
def trained(tmp_path: Path) -> MultiScaleTransformer:
    """A model with the old vocabulary, saved as the checkpoint of step 3 in tmp_path."""
    model = make_model(tmp_path, OLD, seed=1)
    path = checkpoint.folder_of(tmp_path / "checkpoints", 3)
    path.mkdir(parents=True)
    cuts = {s.name: s.parameter.detach().narrow(0, 0, s.valid) if s.partition_dim == 0 else s.parameter.detach() for s in slots_of(model)}
    with TensorFileWriter(path / "weights-a.safetensors", [(name, cut.dtype, tuple(cut.shape)) for name, cut in cuts.items()]) as writer:
        for name, cut in cuts.items():
            writer.write(name, cut.contiguous())
    parameters = {
        s.name: {"shape": list(s.shape), "dim": s.partition_dim, "parts": [{"tag": "a", "start": 0, "stop": s.valid}]}
        for s in slots_of(model)
    }
    files = {"weights-a.safetensors": {"sha256": writer.digest, "bytes": writer.size}}
    manifest = checkpoint.make_manifest(Identity(run_config(tmp_path), OLD, None, "c"), {"step": 3, "row": 0}, files, parameters)
    (path / checkpoint.MANIFEST).write_bytes(checkpoint.manifest_bytes(manifest))
    return model


class PlainEngine(SimpleNamespace):
    """Slots, and weights written into them: its own `state`."""

    @property
    def state(self) -> "PlainEngine":
        return self

    def write(self, slot: Slot, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            target = slot.parameter if slot.partition_dim is None else slot.parameter.narrow(slot.partition_dim, 0, slot.valid)
            target.copy_(tensors["weight"])


def grown_model(tmp_path: Path, vocabulary: Vocabulary = GROWN) -> MultiScaleTransformer:
    model = make_model(tmp_path, vocabulary, seed=2)
    load_initial(tmp_path, PlainEngine(slots=slots_of(model), run=run_config(tmp_path)), vocabulary)
    return model


def batch(vocabulary: Vocabulary) -> Batch:
    """A row of tokens by name: the same document under every vocabulary."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, OLD.size, (1, 16, 3))
    ids = np.where(ids < OLD.reserved, rng.integers(0, len(OLD.specials), ids.shape), ids)
    by_name = {vocabulary.token_name(token): token for token in range(vocabulary.size)}
    codes = torch.tensor([by_name[OLD.token_name(int(token))] for token in ids.flatten()]).view(1, 16, 3)
    starts = torch.tensor([[0, 16]], dtype=torch.int32)
    none = torch.full((1, 1), -1, dtype=torch.int32)
    mask = torch.ones(1, 16, 3, dtype=torch.int8)
    positions = torch.arange(16, dtype=torch.int32)[None]
    return Batch(codes, mask, starts, torch.zeros_like(starts), positions, torch.zeros(1, 1, 8), none, torch.tensor([[0, -1]]))


def test_the_grown_model_says_of_known_tokens_what_the_old_one_said(tmp_path: Path, trained: MultiScaleTransformer) -> None:
    grown = grown_model(tmp_path)
    rows = token_rows(OLD, GROWN, what="x")
    kept = torch.from_numpy(np.flatnonzero(rows >= 0))
    before, after = trained.logits(batch(OLD)), grown.logits(batch(GROWN))
    torch.testing.assert_close(after[..., kept], before[..., torch.from_numpy(rows[rows >= 0])], rtol=1e-6, atol=1e-6)


def test_new_rows_are_like_the_old_ones_and_the_same_every_time(tmp_path: Path, trained: MultiScaleTransformer) -> None:
    one, two = grown_model(tmp_path), grown_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    new = torch.from_numpy(np.flatnonzero(token_rows(OLD, GROWN, what="x") < 0))
    table, old = (dict(model.named_parameters())["embed.code.weight"].detach() for model in (one, trained))
    assert {GROWN.token_name(int(token)).split(":")[0] for token in new} >= {"<dance_task>", "phone", "gesture"}
    assert table[new].std().item() == pytest.approx(old[: OLD.size].std().item(), rel=0.1)
    assert len(table[new].unique(dim=0)) == len(new), "no two new tokens are alike"


def test_each_rank_takes_the_rows_of_its_own_ids(tmp_path: Path, trained: MultiScaleTransformer) -> None:
    whole = grown_model(tmp_path)
    name = "embed.code.weight"
    expected = dict(whole.named_parameters())[name]
    slot = next(slot for slot in slots_of(make_model(tmp_path, GROWN, seed=3)) if slot.name == name)
    seen: list[torch.Tensor] = []
    engine = PlainEngine(slots=[replace(slot, start=1000, valid=2500)], run=run_config(tmp_path))
    engine.write = lambda slot, tensors: seen.append(tensors["weight"])
    load_initial(tmp_path, engine, GROWN)
    assert torch.equal(seen[0], expected[1000:3500])


def test_a_vocabulary_that_lost_tokens_is_refused(tmp_path: Path, trained: MultiScaleTransformer) -> None:
    smaller = Vocabulary("smaller", OLD.reserved, OLD.specials, OLD.mask, OLD.ranges[:-1])
    with pytest.raises(UserError, match=r"its vocabulary paper has tokens that smaller lacks \| seen: .*remedy: .*only adds"):
        grown_model(tmp_path, smaller)


def test_an_equal_vocabulary_loads_as_before(tmp_path: Path, trained: MultiScaleTransformer) -> None:
    same = grown_model(tmp_path, OLD)
    assert torch.equal(same.logits(batch(OLD)), trained.logits(batch(OLD)))
