"""The launch search: its cases are what they say (small, in the interpreter), names choose them, lines are written as they come."""

import pytest
import torch

from uniaudio.kernels.benchmarks import attention_cases, decode_cases, memory_cases, variants
from uniaudio.kernels.benchmarks.variants import CASES, Outcome, selected, worst_error, write

CUDA = torch.cuda.is_available()
SMALL = {"qkv": (48, 32, True, None), "out": (24, 32, False, None), "up": (40, 32, True, "exact"), "down": (24, 48, False, None)}
DIRECTIONS = ("forward", "backward")
BUILT = [
    *(f"frame {codes} {direction}" for codes in (3, 8) for direction in DIRECTIONS),
    *(name for name in CASES if name.startswith(("norm", "gelu", "embedding", "packed bias"))),
    *(f"decode {name} {rows} {kind}" for name, rows in (("qkv", 1), ("out", 64), ("up", 64), ("down", 1)) for kind in ("bf16", "int8")),
]


@pytest.fixture
def small(monkeypatch) -> None:
    """Sizes that the interpreter runs, on the CPU in float16, which it knows."""
    torch.manual_seed(0)
    for module in (attention_cases, decode_cases, memory_cases):
        monkeypatch.setattr(module, "random", lambda *shape, grad: torch.randn(shape, dtype=torch.float16, requires_grad=grad))
    for module, sizes in (
        (attention_cases, {"FRAMES": 4}),
        (memory_cases, {"ROWS": 5, "WIDTH": 48, "FRAMES": 6, "VOCABULARY": 9, "POSITIONS": 7}),
        (decode_cases, {"LAYERS": 2, "MAPS": {name: decode_cases.Map(*values) for name, values in SMALL.items()}}),
    ):
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)


@pytest.mark.skipif(CUDA, reason="in the interpreter")
@pytest.mark.parametrize("name", BUILT)
def test_the_first_form_of_a_case_agrees_with_its_truth(name, small) -> None:
    case = CASES[name]()
    truth = case.truth()
    allowed = 2 * worst_error(case.peer()(), truth)
    assert 0 < allowed < 0.02
    assert worst_error(next(iter(case.forms.values()))(), truth) <= allowed
    assert len(case.forms) > 1 or name.startswith("decode")  # of few outputs no launch but the one in use fills the card
    assert case.bytes > 0


def test_a_launch_is_tried_once_and_the_one_in_use_first() -> None:
    used = decode_cases.Launch(64, 256, 3, 2)
    tried = list(decode_cases.launches(decode_cases.MAPS["qkv"], 1, 2, used))
    assert tried[0] == used
    assert len(tried) == len(set(tried)) > 20
    assert all(launch.outputs * launch.depth * 2 * launch.stages < decode_cases.SHARED_BYTES for launch in tried)


def test_a_launch_of_few_rows_is_tried_once_and_its_weights_fit_into_the_registers() -> None:
    used = decode_cases.FewRows(1, 4, 1)
    tried = list(decode_cases.few_launches(decode_cases.MAPS["down"], 2, used))
    assert tried[0] == used
    assert len(tried) == len(set(tried)) > 4
    assert all(launch.outputs * 6144 * 2 <= 128 * 4 * 32 * launch.warps for launch in tried)


def test_names_choose_cases_by_their_first_words() -> None:
    assert selected([]) == list(CASES)
    assert selected(["norm backward"]) == ["norm backward"]
    assert selected(["decode up 64", "frame 3"]) == ["frame 3 forward", "frame 3 backward", "decode up 64 bf16", "decode up 64 int8"]
    assert len(selected(["decode"])) == 16


def test_an_unknown_case_is_refused_with_the_known_ones(capsys, tmp_path) -> None:
    with pytest.raises(SystemExit):
        variants.main(["--out", str(tmp_path), "--only", "decod"])
    assert "no case 'decod'; there are: frame 3 forward, " in capsys.readouterr().err


@pytest.mark.skipif(CUDA, reason="without a GPU")
def test_without_a_gpu_it_says_what_it_needs(capsys, tmp_path, monkeypatch) -> None:
    with pytest.raises(SystemExit):
        variants.main(["--out", str(tmp_path / "out")])
    assert "times compiled kernels on a CUDA GPU | seen: TRITON_INTERPRET=1" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SystemExit):
        variants.main(["--out", str(tmp_path / "out")])
    assert "seen: no GPU that torch can use" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lines_are_on_disk_before_the_next_is_measured(tmp_path) -> None:
    path = tmp_path / "out" / "variants.csv"

    def outcomes() -> object:
        yield Outcome("norm forward", "torch", 1.0, 1.1, 1.2, 0.0, 0.9, 1.0, 1e-3, 2e-3)
        assert path.read_text(encoding="utf-8").splitlines() == [
            "case,form,p20_ms,p50_ms,p80_ms,tflops,of_copy,over_peer,error,allowed",
            "norm forward,torch,1.0,1.1,1.2,0.0,0.9,1.0,0.001,0.002",
        ]
        raise RuntimeError("the card is gone")

    with pytest.raises(RuntimeError, match="the card is gone"):
        write(path, outcomes())
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
