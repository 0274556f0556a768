"""Bias + GELU and SwiGLU in Triton: only the inputs are saved, the backward pass computes the rest again.

R rows of F features. The gradient of the bias is summed over a fixed set of rows per program, so that it is deterministic.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch.autograd.function import FunctionCtx, once_differentiable

from uniaudio.kernels.column_sum import column_sum
from uniaudio.kernels.device import streaming_multiprocessors


@dataclass(frozen=True)
class Launch:
    """Features and rows a tile, warps, and for the gradient of the bias programs a multiprocessor and tiles in flight of each."""

    features: int
    rows: int
    warps: int
    programs_an_sm: int = 1
    stages: int = 1


# Measured best on an H100 (kernels/README.md).
FORWARD = Launch(2048, 1, 4)
BACKWARD = Launch(1024, 1, 8, 8)


@triton.jit
def _below(z, bell):
    """Phi(z), the share of a normal distribution below z, where bell = exp(-z^2 / 2), to 1e-7.

    Abramowitz and Stegun 7.1.26; it shares the bell with the slope, where libdevice's erf makes one of its own.
    """
    t = 1.0 / (1.0 + 0.23164190 * tl.abs(z))
    tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))) * bell
    return tl.where(z >= 0, 1.0 - tail, tail)


@triton.jit
def _bell(z):
    """exp(-z^2 / 2)."""
    return tl.exp2(z * z * -0.7213475204444817)


@triton.jit
def gelu_value(z, EXACT: tl.constexpr, WIDE: tl.constexpr):
    """gelu(z); WIDE: to float32's precision."""
    if not EXACT:
        result = z / (1.0 + tl.exp(-_tanh_argument(z)))
    elif WIDE:
        result = z * (0.5 + 0.5 * tl.erf(z * 0.7071067811865476))
    else:
        result = z * _below(z, _bell(z))
    return result


@triton.jit
def _tanh_argument(z):
    """u with gelu_tanh(z) = z * sigmoid(u); bounded below, where the result is 0 anyway, so that exp(-u) stays finite."""
    return tl.maximum(1.5957691216057308 * (z + 0.044715 * z * z * z), -80.0)


@triton.jit
def gelu_slope(z, EXACT: tl.constexpr, WIDE: tl.constexpr):
    """d gelu(z) / dz; WIDE: to float32's precision."""
    if EXACT:
        if WIDE:
            result = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
        else:
            bell = _bell(z)
            result = _below(z, bell) + z * 0.3989422804014327 * bell
    else:
        power = tl.exp(-_tanh_argument(z))
        sigmoid = 1.0 / (1.0 + power)
        # sigmoid * (1 - sigmoid) written without the difference, which loses every digit where sigmoid is near 1
        result = sigmoid + z * power * sigmoid * sigmoid * 1.5957691216057308 * (1.0 + 3 * 0.044715 * z * z)
    return result


@triton.jit
def _gelu_forward(x, bias, out, count, features, EXACT: tl.constexpr, FEATURES: tl.constexpr, ROWS: tl.constexpr):
    blocks = tl.cdiv(features, FEATURES)
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks * ROWS + tl.arange(0, ROWS)
    col = program % blocks * FEATURES + tl.arange(0, FEATURES)
    inside = (row < count)[:, None] & (col < features)[None, :]
    offsets = row[:, None] * features + col[None, :]
    z = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    z += tl.load(bias + col, mask=col < features, other=0.0).to(tl.float32)[None, :]
    tl.store(out + offsets, gelu_value(z, EXACT, out.dtype.element_ty == tl.float32).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_backward(
    x, bias, grad_out, grad_x, bias_parts, count, features, rows_a_program,
    EXACT: tl.constexpr, FEATURES: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(features, FEATURES)
    program = tl.program_id(0).to(tl.int64)
    part = program // blocks
    col = program % blocks * FEATURES + tl.arange(0, FEATURES)
    shift = tl.load(bias + col, mask=col < features, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    end = tl.minimum((part + 1) * rows_a_program, count)
    for first in tl.range(part * rows_a_program, end, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & (col < features)[None, :]
        offsets = row[:, None] * features + col[None, :]
        z = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) + shift
        grad = tl.load(grad_out + offsets, mask=inside, other=0.0).to(tl.float32) * gelu_slope(z, EXACT, x.dtype.element_ty == tl.float32)
        total += grad
        tl.store(grad_x + offsets, grad.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(bias_parts + part * features + col, tl.sum(total, axis=0), mask=col < features)


@triton.jit
def _swiglu_forward(gate_up, out, count, features, FEATURES: tl.constexpr, ROWS: tl.constexpr):
    blocks = tl.cdiv(features, FEATURES)
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks * ROWS + tl.arange(0, ROWS)
    col = program % blocks * FEATURES + tl.arange(0, FEATURES)
    inside = (row < count)[:, None] & (col < features)[None, :]
    source = gate_up + row[:, None] * 2 * features + col[None, :]
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + features, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * features + col[None, :], (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(gate_up, grad_out, grad_gate_up, count, features, FEATURES: tl.constexpr, ROWS: tl.constexpr):
    blocks = tl.cdiv(features, FEATURES)
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks * ROWS + tl.arange(0, ROWS)
    col = program % blocks * FEATURES + tl.arange(0, FEATURES)
    inside = (row < count)[:, None] & (col < features)[None, :]
    packed = row[:, None] * 2 * features + col[None, :]
    gate = tl.load(gate_up + packed, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + packed + features, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_out + row[:, None] * features + col[None, :], mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    grad_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(grad_gate_up + packed, grad_gate.to(grad_gate_up.dtype.element_ty), mask=inside)
    tl.store(grad_gate_up + packed + features, (grad * gate * sigmoid).to(grad_gate_up.dtype.element_ty), mask=inside)


def _tiles(count: int, features: int, launch: Launch) -> tuple[int]:
    return (triton.cdiv(count, launch.rows) * triton.cdiv(features, launch.features),)


def gelu_forward(x: torch.Tensor, bias: torch.Tensor, exact: bool, launch: Launch = FORWARD) -> torch.Tensor:
    """gelu(x + bias)."""
    features = x.shape[-1]
    out = torch.empty_like(x)
    if x.numel():
        count = x.numel() // features
        grid = _tiles(count, features, launch)
        _gelu_forward[grid](x, bias, out, count, features, exact, launch.features, launch.rows, num_warps=launch.warps)
    return out


def gelu_backward(
    x: torch.Tensor, bias: torch.Tensor, grad_out: torch.Tensor, exact: bool, launch: Launch = BACKWARD
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x and bias."""
    features = x.shape[-1]
    count, blocks = x.numel() // features, triton.cdiv(features, launch.features)
    wanted = triton.cdiv(streaming_multiprocessors(x.device) * launch.programs_an_sm, blocks)
    parts = max(1, min(triton.cdiv(count, launch.rows), wanted))
    rows_a_program = triton.cdiv(triton.cdiv(count, launch.rows), parts) * launch.rows
    grad_x = torch.empty_like(x)
    bias_parts = torch.empty(parts, features, dtype=torch.float32, device=x.device)
    _gelu_backward[(parts * blocks,)](
        x, bias, grad_out, grad_x, bias_parts, count, features, rows_a_program, exact, launch.features, launch.rows, launch.stages,
        num_warps=launch.warps,
    )  # fmt: skip
    return grad_x, column_sum(bias_parts, bias.dtype)


class BiasGelu(torch.autograd.Function):
    """gelu(x + bias); saves x and bias."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, bias: torch.Tensor, exact: bool) -> torch.Tensor:
        ctx.save_for_backward(x, bias)
        ctx.exact = exact
        return gelu_forward(x, bias, exact)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, bias = ctx.saved_tensors
        return *gelu_backward(x, bias, grad_out.contiguous(), ctx.exact), None


class SwiGlu(torch.autograd.Function):
    """silu(gate) * up of the packed projection; saves it alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        features = gate_up.shape[-1] // 2
        out = torch.empty(*gate_up.shape[:-1], features, dtype=gate_up.dtype, device=gate_up.device)
        if out.numel():
            count = out.numel() // features
            _swiglu_forward[_tiles(count, features, FORWARD)](
                gate_up, out, count, features, FORWARD.features, FORWARD.rows, num_warps=FORWARD.warps
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_out: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors
        features = gate_up.shape[-1] // 2
        grad = torch.empty_like(gate_up)
        if grad.numel():
            count = grad_out.numel() // features
            tensors = (gate_up, grad_out.contiguous(), grad)
            grid = _tiles(count, features, FORWARD)
            _swiglu_backward[grid](*tensors, count, features, FORWARD.features, FORWARD.rows, num_warps=FORWARD.warps)
        return grad
