"""Every kernel test runs where it can: fp32 and fp16 in Triton's interpreter on the CPU, and with bf16 on a GPU (marker `gpu`).

The tolerance is derived, not tuned: the kernel may err twice as much as plain PyTorch at the same precision, both measured against
float64, plus half a unit in the last place: the rounding of a result that is otherwise exact.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Place:
    """Device and precision of a test, and a source of fresh random inputs."""

    device: str
    dtype: torch.dtype
    generator: torch.Generator

    def randn(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale
        return values.to(self.device, self.dtype)

    def randint(self, low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator).to(self.device, dtype)


def _places() -> list:
    def case(device: str, dtype: torch.dtype) -> object:
        marks = [pytest.mark.gpu] if device == "cuda" else []
        missing = (device == "cuda") != CUDA
        marks.append(pytest.mark.skipif(missing, reason="runs on the CPU only in the interpreter, on CUDA only with a GPU"))
        return pytest.param((device, dtype), marks=marks, id=f"{device}-{str(dtype).removeprefix('torch.')}")

    cpu = [case("cpu", dtype) for dtype in (torch.float32, torch.float16)]
    return cpu + [case("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]


@pytest.fixture(params=_places())
def place(request: pytest.FixtureRequest) -> Place:
    device, dtype = request.param
    return Place(device, dtype, torch.Generator().manual_seed(zlib.crc32(request.node.name.encode())))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and torch.empty_like give NaN, so that an element which a kernel leaves unwritten shows."""
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def filled(*args: object, original: Callable[..., torch.Tensor] = original, **kwargs: object) -> torch.Tensor:
            tensor = original(*args, **kwargs)
            if tensor.is_floating_point():
                tensor.detach().fill_(float("nan"))
            elif tensor.dtype in (torch.int32, torch.int64):
                tensor.fill_(2**30)
            return tensor

        monkeypatch.setattr(torch, name, filled)


def error(result: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative Frobenius distance; NaN anywhere gives infinity."""
    result, truth = result.double(), truth.double()
    distance = ((result - truth).norm() / truth.norm().clamp(min=1e-30)).item()
    return distance if distance == distance else float("inf")


@pytest.fixture
def assert_as_good() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, str], None]:
    """assert_as_good(kernel's result, plain PyTorch's, float64 truth, name of the tensor)."""

    def check(result: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, name: str) -> None:
        assert result.shape == truth.shape, name
        assert result.dtype == plain.dtype, name
        allowed = 2 * error(plain, truth) + torch.finfo(result.dtype).eps / 2
        assert error(result, truth) <= allowed, f"{name}: error {error(result, truth):.3e}, allowed {allowed:.3e}"

    return check


@pytest.fixture
def outputs_and_gradients() -> Callable[..., list[torch.Tensor]]:
    """outputs_and_gradients(function, inputs, upstream, dtype) -> outputs, then the gradient of each input, computed in `dtype`."""

    def run(
        function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
        inputs: list[torch.Tensor],
        upstream: list[torch.Tensor],
        dtype: torch.dtype,
    ) -> list[torch.Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        result = function(*leaves)
        outputs = list(result) if isinstance(result, tuple) else [result]
        gradients = torch.autograd.grad(outputs, leaves, [grad.to(out.dtype) for grad, out in zip(upstream, outputs)])
        return [*(out.detach() for out in outputs), *gradients]

    return run
