"""Orders of codes: built and reverted, every code once, nothing sees what it is to predict, and losses are of the same codes."""

from typing import get_args

import numpy as np
import pytest
import torch

from uniaudio.configs.flops import layer_flops, parameter_shapes
from uniaudio.configs.load import load_config
from uniaudio.configs.model import ModelConfig, Structure
from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.patterns import EMPTY, build, frames_of_slots, make_arranger, revert
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.export import model_shapes
from uniaudio.pretrain.generate.slots import require_frames
from uniaudio.pretrain.metrics import count_codes
from uniaudio.pretrain.model.model import MultiScaleTransformer

STRUCTURES = get_args(Structure)
ARRANGED = [name for name in STRUCTURES if name not in ("multi_scale", "parallel")]
VOCABULARY = load_vocabulary("paper")
LEVELS = 3


def config(structure: str) -> ModelConfig:
    local = 1 if structure == "multi_scale" else 0
    sizes = {"width": 32, "num_heads": 2, "ffn_width": 64, "max_positions": 192, "text_width": 8}
    return ModelConfig(structure=structure, local_layers=local, global_layers=3 - local, init_std=0.3, **sizes)


def batch() -> Batch:
    """Two rows: two documents with text and some frames of audio, and padding; one document and no padding."""
    special, draw = VOCABULARY.special, np.random.default_rng(3)
    audio = np.array([VOCABULARY.audio_level(q).start for q in range(LEVELS)])

    def document(frames: int) -> np.ndarray:
        names = ["<start>", "<tts_task>", "<continuous_token>", "<audio_start>"]
        head, tail = ([[special(name)] * LEVELS for name in part] for part in (names, ["<audio_end>", "<end>"]))
        return np.array([*head, *(audio + draw.integers(0, 1024, (frames, LEVELS))).tolist(), *tail])

    first, second, third = document(5), document(3), document(18)
    rows = np.zeros((2, 24, LEVELS), np.int64)
    rows[0, :11], rows[0, 11:20], rows[1] = first, second, third
    mask = np.zeros(rows.shape, np.int8)
    mask[0, 4:11], mask[0, 15:20], mask[1, 4:24] = 1, 1, 1
    positions = np.array([[*range(11), *range(9), *range(4)], range(24)], np.int32)
    return Batch(
        torch.from_numpy(rows),
        torch.from_numpy(mask),
        torch.tensor([[0, 11, 20, 24], [0, 24, 24, 24]], dtype=torch.int32),
        torch.tensor([[4, 4, 0, 0], [4, 0, 0, 0]], dtype=torch.int32),
        torch.from_numpy(positions),
        torch.ones(2, 2, 8),
        torch.tensor([[2, 13], [2, -1]], dtype=torch.int32),
        torch.tensor([[0, 1, -1, -1], [1, -1, -1, -1]], dtype=torch.int32),
    )


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_codes_come_back_and_each_stands_once(structure: Structure, frames: int) -> None:
    codes = np.arange(frames * LEVELS).reshape(frames, LEVELS)
    steps = build(codes, structure, empty=-7)
    assert sorted(steps[steps != -7].tolist()) == list(range(frames * LEVELS))
    assert np.array_equal(revert(steps, structure, frames), codes)
    with pytest.raises(ValueError, match=f"{structure}: {frames + 1} frames make"):
        revert(steps, structure, frames + 1)


def test_the_patterns_are_those_of_the_literature() -> None:
    assert frames_of_slots("delay", 3, 3).tolist() == [[0, -1, -1], [1, 0, -1], [2, 1, 0], [-1, 2, 1], [-1, -1, 2]]
    assert frames_of_slots("flattening", 2, 3).tolist() == [[0, -1, -1], [-1, 0, -1], [-1, -1, 0], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    assert frames_of_slots("coarse_first", 2, 3).tolist() == [[0, -1, -1], [1, -1, -1], [-1, 0, 0], [-1, 1, 1]]
    assert frames_of_slots("parallel", 2, 3).tolist() == frames_of_slots("multi_scale", 2, 3).tolist() == [[0] * 3, [1] * 3]
    assert EMPTY == -1


@pytest.mark.parametrize("structure", ARRANGED)
def test_arranged_batches_hold_the_same_targets_and_documents(structure: str) -> None:
    before = batch()
    arranger = make_arranger(config(structure), VOCABULARY)
    assert arranger is not None
    after = arranger(before)
    assert after.codes_BTQ.shape == (2, 64, LEVELS)
    for level in range(LEVELS):
        targets = [each.codes_BTQ[..., level][each.target_mask_BTQ[..., level] == 1].sort().values for each in (before, after)]
        assert torch.equal(*targets)
    audio = {"delay": (7, 5, 20), "flattening": (15, 9, 54), "coarse_first": (10, 6, 36)}[structure]
    assert after.document_starts_BD.tolist() == [[0, 6 + audio[0], 12 + audio[0] + audio[1], 64], [0, 6 + audio[2], 64, 64]]
    assert after.prefix_lengths_BD.tolist() == before.prefix_lengths_BD.tolist(), "conditions without audio keep their frames"
    assert after.text_positions_BS.tolist() == [[2, 6 + audio[0] + 2], [2, -1]]
    assert after.positions_BT[0, 6 + audio[0] : 9 + audio[0]].tolist() == [0, 1, 2]
    assert [tensor.dtype for tensor in after.as_tuple()] == [tensor.dtype for tensor in before.as_tuple()]
    counts = count_codes([after, before], 2, VOCABULARY.size)
    assert torch.equal(counts, 2 * count_codes([before], 2, VOCABULARY.size)), "batches of unequal lengths, the same codes"
    assert make_arranger(config("parallel"), VOCABULARY) is make_arranger(config("multi_scale"), VOCABULARY) is None


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_code_is_predicted_from_earlier_ones_alone(structure: str) -> None:
    """The loss of each code by the codes that its gradient-free neighbours change: what comes later, or beside it, must not matter."""
    model = MultiScaleTransformer(config(structure), VOCABULARY, num_tasks=2, seed=1)
    arranger = make_arranger(model.config, VOCABULARY)
    plain = batch()
    arranged = arranger(plain) if arranger else plain
    with torch.no_grad():
        before = model.logits(arranged)
        changed = arranged.codes_BTQ.clone()
        step, slot = next((s, q) for s in range(5, 64) for q in reversed(range(LEVELS)) if arranged.target_mask_BTQ[0, s, q])
        changed[0, step, slot] ^= 1
        after = model.logits(Batch(changed, *arranged.as_tuple()[1:]))
    differs = (before != after).any(dim=-1)[0]
    assert not differs[:step].any() and differs[step + 1 :].any()
    assert not differs[step, : slot + 1].any(), "neither the code itself nor one before it"
    assert structure == "multi_scale" or not differs[step].any(), "the codes of a step are independent"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_losses_are_of_the_same_codes_and_sizes_are_counted(structure: str) -> None:
    shape = config(structure)
    model = MultiScaleTransformer(shape, VOCABULARY, num_tasks=2, seed=1)
    arranger = make_arranger(shape, VOCABULARY)
    plain = batch()
    arranged = arranger(plain) if arranger else plain
    sums, counts = model(arranged.as_tuple())
    assert counts.tolist() == [[7.0] * 3, [25.0] * 3]
    logits = model.logits(arranged)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 2), arranged.codes_BTQ.flatten(), reduction="none")
    expected = (losses * arranged.target_mask_BTQ.flatten()).sum()
    torch.testing.assert_close(sums.sum(), expected)
    sums.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert parameter_shapes(shape, VOCABULARY.size) == model_shapes(shape, VOCABULARY)
    costs = layer_flops(shape, 16, VOCABULARY.size)
    assert len(costs) == len(model.as_layers())
    assert shape.steps_per_frame == {"flattening": 3, "coarse_first": 2}.get(structure, 1)


def test_what_structures_cannot_be_is_one_line() -> None:
    def load(*overrides: str) -> None:
        load_config(RunConfig, "demo_cpu", folder="runs", overrides=["parallel.tensor_parallel_size=1", *overrides])

    load("model.structure=delay", "model.local_layers=0")
    faults = [
        (("model.structure=delay",), r"the other structures have none \| seen: 2, model.structure delay \| allowed: 0"),
        (("model.local_layers=0",), r"seen: 0, model.structure multi_scale \| allowed: 1 or more"),
        (("model.structure=parallel", "model.local_layers=0", "parallel.tensor_parallel_size=2"), r"on whole models \| seen: parallel, "),
        (("model.structure=flattening", "model.local_layers=0"), r"exceeds model.max_positions \| seen: 512 x 3 steps \+ 0 \|"),
        (("model.structure=delay", "model.local_layers=0", "model.max_positions=512"), r"seen: 512 x 1 steps \+ 6 \| allowed: up to 512"),
    ]
    for overrides, message in faults:
        with pytest.raises(UserError, match=message):
            load(*overrides)
    with pytest.raises(UserError, match=r"generation is of multi-scale models \| seen: model.structure delay"):
        require_frames(config("delay"))
