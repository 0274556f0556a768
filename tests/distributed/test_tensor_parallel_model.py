"""Tensor parallel 2 (two gloo processes, megatron-core's layers) against one process: logits, losses, every gradient, generation."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "pretrain" / "model"))

from tiny_model import PAPER_FORM, RELEASED_FORM, TIME_FORM, VOCABULARY, tiny_batch, tiny_config

from uniaudio.configs.parallel import ParallelConfig
from uniaudio.pretrain.data.sequence import Sequence
from uniaudio.pretrain.data.vocabulary import load_vocabulary
from uniaudio.pretrain.generate.request import Request
from uniaudio.pretrain.generate.slots import generate_codes
from uniaudio.pretrain.model.decode import DecodeState, Prompt
from uniaudio.pretrain.model.decode_weights import DecodeWeights
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.parallel import layout as layout_module
from uniaudio.pretrain.parallel.tensor import is_cut
from uniaudio.pretrain.sampling import Sampling

FORMS = {"paper": {**PAPER_FORM, "prefix_lm": True}, "released": RELEASED_FORM, "time": TIME_FORM}
Result = dict[str, torch.Tensor]


def results(form: str, tensor) -> Result:
    """Logits, loss sums, a step of generation, and every gradient as this rank holds it."""
    model = MultiScaleTransformer(tiny_config(**FORMS[form]), VOCABULARY, num_tasks=2, tensor_parallel=tensor, seed=4)
    batch = tiny_batch(8)
    sums, counts = model(batch.as_tuple())
    (sums * torch.arange(1.0, 7.0).view(2, 3)).sum().backward()
    state = DecodeState(DecodeWeights(model, [torch.arange(VOCABULARY.size)] * 3), rows=1, max_frames=16)
    state.prefill([Prompt(batch.codes_BTQ[0, :4])])
    hidden = state.step(batch.codes_BTQ[0, 4:5])
    found_codes = greedy_codes(tensor, FORMS[form])
    found = {"codes": found_codes, "logits": model.logits(batch).detach(), "sums": sums.detach(), "counts": counts, "hidden": hidden}
    found["step"] = torch.stack([state.level_logits(hidden, batch.codes_BTQ[0, 5:6], level) for level in range(3)])
    for name, parameter in model.named_parameters():
        found[f"grad {name}"] = parameter.grad
        found[f"value {name}"] = parameter.detach()
        found[f"cut {name}"] = torch.tensor(parameter.partition_dim if is_cut(parameter) else -1)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}, "only parameters, under the same names"
    model.load_state_dict(model.state_dict())
    return found


def greedy_codes(tensor, form: dict) -> torch.Tensor:
    """What two requests generate in the frame loop, (2, 6, 3)."""
    vocabulary = load_vocabulary("paper")
    model = MultiScaleTransformer(tiny_config(max_positions=32, **form), vocabulary, tensor_parallel=tensor, seed=4)
    documents = []
    for length in (5, 8):
        codes = np.random.default_rng(length).integers(0, vocabulary.size, (length, 3))
        documents.append(Sequence(codes, np.zeros(codes.shape, np.int8), np.zeros((0, 0)), np.zeros(0, np.int32), 0))
    made = generate_codes(model, vocabulary, [Request(document, Sampling(), 3, 6, 6) for document in documents])
    return torch.from_numpy(np.stack([clip.codes_TQ for clip in made]).astype(np.int64))


def worker(to: str) -> None:
    layout = layout_module.initialize(ParallelConfig(tensor_parallel_size=2), torch.device("cpu"))
    again = layout_module.initialize(ParallelConfig(tensor_parallel_size=2), torch.device("cpu"))
    rank = layout.rank
    assert again == layout and (str(rank), layout.tensor.rank, layout.tensor.size) == (os.environ["RANK"], rank, 2)
    assert (layout.data_parallel_rank, layout.data_parallel_size, layout.pipeline_rank) == (0, 1, 0)
    with pytest.raises(ValueError, match=r"already for .* sizes \(2, 1\) \| asked: \(1, 2\)"):
        layout_module.initialize(ParallelConfig(pipeline_parallel_size=2), torch.device("cpu"))
    for form in FORMS:
        torch.save(results(form, layout.tensor), f"{to}/{form}.{rank}.pt")
    layout_module.shutdown()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict[str, list[Result]]:
    folder = tmp_path_factory.mktemp("tensor_parallel")
    run_ranks(2, folder, worker, to=str(folder))
    return {form: [torch.load(folder / f"{form}.{rank}.pt", weights_only=True) for rank in range(2)] for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_compute_what_one_does(form, ranks) -> None:
    one = results(form, None)
    for name in ("sums", "counts"):
        torch.testing.assert_close(sum(two[name] for two in ranks[form]), one[name], rtol=1e-5, atol=2e-5, msg=name)
    for two in ranks[form]:
        assert torch.equal(two["codes"], one["codes"])
        for name in ("logits", "hidden", "step"):
            torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=2e-5, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_every_gradient_and_value_is_a_slice_of_the_one_process_tensor(form, ranks) -> None:
    """Or whole: then the values are equal on both ranks, and the gradients are sums over the own frames."""
    one = results(form, None)
    cuts = 0
    for key, whole in one.items():
        kind, _, name = key.partition(" ")
        if kind not in ("grad", "value"):
            continue
        parts = [two[key] for two in ranks[form]]
        dim = int(ranks[form][0][f"cut {name}"])
        cuts += dim >= 0
        if dim >= 0:
            candidates = [torch.cat(parts, dim=dim)]
        else:
            candidates = [sum(parts)] if kind == "grad" else parts
        for joined in candidates:
            torch.testing.assert_close(joined, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()), msg=key)
            assert kind == "grad" or torch.equal(joined, whole), key
    assert cuts == 2 * 6 * 2, "six parameters of each global block, value and gradient"
