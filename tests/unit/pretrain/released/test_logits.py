"""An imported checkpoint gives the logits of the original mathematics, for both published forms, text positions included."""

from dataclasses import dataclass
from pathlib import Path

import original_model as original
import pytest
import torch
from original_model import Shape
from released_files import RANGES, SMALL_RANGES, arguments, small_shape, token_list, write_checkpoint, write_config

from uniaudio.pretrain import load_model
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.loaded import LoadedModel
from uniaudio.pretrain.released.importing import import_released

MEGA = {"mega_global": 23, "mega_local": 24}
SIXTEEN = Shape(
    layers=16, heads=12, width=96, codes=3, ids=4213, positions=24
)  # the published checkpoint, narrower: 12 heads, 16 + 8 layers
RECIPES = Shape(layers=24, heads=16, width=384, codes=3, ids=175, positions=24)  # the recipes' form, narrower: 16 heads, 24 + 8 layers


@dataclass(frozen=True)
class Case:
    """A released state dict and the model imported from it."""

    shape: Shape
    tensors: original.Tensors
    model: LoadedModel


def make_case(folder: Path, shape: Shape, ranges: dict[str, int], *, prefix: str, **changes: bool) -> Case:
    torch.set_num_threads(1)
    tensors = original.state_dict(shape, seed=shape.layers)
    checkpoint = write_checkpoint(folder / "ep1.checkpoint", tensors, prefix=prefix)
    config = write_config(folder / "config.yaml", arguments(shape, ranges) | changes)
    import_released(checkpoint, config, folder / "imported")
    checkpoint.unlink()
    return Case(shape, tensors, load_model(folder / "imported"))


@pytest.fixture(scope="module", params=["published", "recipes"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "published":
        return make_case(folder, SIXTEEN, RANGES, prefix="module.")
    return make_case(folder, RECIPES, SMALL_RANGES, prefix="")


def random_ids(shape: Shape, rows: int, frames: int) -> torch.Tensor:
    return torch.randint(0, shape.ids, (rows, frames * shape.codes), generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def compare(case: Case, ids: torch.Tensor, ours: torch.Tensor, **options) -> None:
    truth = original.logits(case.tensors, case.shape, ids, **MEGA, **options)
    assert ours.dtype == torch.float32
    assert truth.std() > 0.3, "logits worth comparing"
    torch.testing.assert_close(ours.flatten(1, 2), truth, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 24])
def test_logits_are_the_originals(case: Case, frames: int) -> None:
    ids = random_ids(case.shape, 2, frames)
    compare(case, ids, case.model(ids.unflatten(1, (frames, 3))))


@torch.no_grad()
def test_logits_are_the_originals_with_text(case: Case) -> None:
    """One row has text at its beginning and again later, the other one state, on the last frame that has an effect."""
    ids = random_ids(case.shape, 2, 9)
    states = torch.randn(2, 4, 768, generator=torch.Generator().manual_seed(5))
    places = torch.tensor([[0, 1, 2, 5], [7, -1, -1, -1]])
    text = [{int(place): states[row, slot] for slot, place in enumerate(places[row]) if place >= 0} for row in range(2)]
    ours = case.model(ids.unflatten(1, (9, 3)), text_states_BSC=states, text_positions_BS=places)
    compare(case, ids, ours, text=text)
    assert not torch.allclose(ours, case.model(ids.unflatten(1, (9, 3))), atol=1e-2), "text changes the logits"


@torch.no_grad()
def test_logits_of_a_prefix_lm_checkpoint_are_the_originals(tmp_path: Path) -> None:
    case = make_case(tmp_path, small_shape(layers=5), SMALL_RANGES, prefix="module.", prefix_lm=True)
    ids = random_ids(case.shape, 2, 10)
    target = torch.zeros(2, 10, dtype=torch.bool)
    target[0, 4:9] = target[1, 7:9] = True  # from <audio_start> on; the prefix ends with its input position
    ours = case.model(ids.unflatten(1, (10, 3)), prefix_lengths_B=torch.tensor([5, 8]))
    compare(case, ids, ours, target=target)


def test_shipped_table_is_recognised_in_the_published_token_list(case: Case) -> None:
    shipped, table = load_vocabulary("released"), case.model.vocabulary
    if case.shape is SIXTEEN:
        assert table.fingerprint == shipped.fingerprint
        assert case.model.run.model.vocabulary == "released"
        names = [table.token_name(index) for index in range(table.size)]
        released = token_list(RANGES)
        assert [names[0], names[3200], names[3201], names[4212]] == ["<pad>", "audio:mask", "phone:0", "sing_midi:137"]
        assert [released[3200], released[3201], released[4212]] == ["<audio_3072>", "<phone_0>", "<sing_midi_137>"]
    else:
        assert table.fingerprint != shipped.fingerprint
        assert list(table.audio_level(1)) == list(range(138, 148))
        assert table.audio_mask == 158
        assert load_vocabulary(case.model.run.model.vocabulary).fingerprint == table.fingerprint, "the folder's own vocabulary.yaml"
