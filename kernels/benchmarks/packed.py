"""Attention over packed documents: the kernel beside torch's varlen FlashAttention-2, FlexAttention with a document mask and cuDNN."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from uniaudio.kernels.benchmarks.measure import Table, add_both, lognormal_documents, random
from uniaudio.kernels.varlen_attention import varlen_attention

ROWS, FRAMES = 4, 8192


def boundaries(documents: list[list[int]], frames: int) -> torch.Tensor:
    """Boundary tensor (B, D) as in a batch."""
    most = max(map(len, documents))
    return torch.tensor([[*starts, *[frames] * (most - len(starts))] for starts in documents], dtype=torch.int32, device="cuda")


def pairs(documents: list[list[int]], frames: int) -> int:
    """(query, key) pairs that causal attention inside documents looks at."""
    lengths = [end - start for starts in documents for start, end in zip(starts, [*starts[1:], frames])]
    return sum(length * (length + 1) // 2 for length in lengths)


def torch_varlen(documents: list[list[int]], frames: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """torch.nn.attention.varlen over the packed projection."""
    ends = [row * frames + start for row, starts in enumerate(documents) for start in starts] + [len(documents) * frames]
    offsets = torch.tensor(ends, dtype=torch.int32, device="cuda")
    longest = int(offsets.diff().max())

    def run(qkv: torch.Tensor) -> torch.Tensor:
        query, key, value = qkv.flatten(0, 1).unbind(2)
        out = varlen_attn(query, key, value, offsets, offsets, longest, longest, window_size=(-1, 0))
        return out.reshape(qkv.shape[0], qkv.shape[1], -1)

    return run


def flex(documents: list[list[int]], frames: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compiled FlexAttention under a causal document mask."""
    starts = boundaries(documents, frames)
    positions = torch.arange(frames, device="cuda", dtype=torch.int32).expand(len(documents), frames).contiguous()
    document = torch.searchsorted(starts, positions, right=True)

    def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (document[b, q] == document[b, k]) & (q >= k)

    mask = create_block_mask(seen, len(documents), None, frames, frames, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(qkv: torch.Tensor) -> torch.Tensor:
        query, key, value = qkv.permute(3, 0, 2, 1, 4)
        return compiled(query, key, value, block_mask=mask).transpose(1, 2).flatten(2)

    return run


def cudnn(qkv: torch.Tensor) -> torch.Tensor:
    """cuDNN's causal attention over the whole row."""
    query, key, value = qkv.permute(3, 0, 2, 1, 4)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)


def check() -> None:
    """Output and gradient of the bench's own inputs against float32, beside torch's varlen kernel: error at most twice its."""
    documents = lognormal_documents(1, 2048, seed=3)
    starts = boundaries(documents, 2048)
    qkv = torch.randn(1, 2048, 2, 3, 128, device="cuda", dtype=torch.bfloat16)
    grad = torch.randn(1, 2048, 256, device="cuda", dtype=torch.bfloat16)
    results = {}
    for name, run, dtype in (
        ("truth", lambda x: varlen_attention(x, starts, backend="torch"), torch.float32),
        ("torch varlen", torch_varlen(documents, 2048), torch.bfloat16),
        ("triton", lambda x: varlen_attention(x, starts, backend="triton"), torch.bfloat16),
    ):
        leaf = qkv.to(dtype).requires_grad_()
        out = run(leaf)
        results[name] = (out, torch.autograd.grad(out, leaf, grad.to(dtype))[0])
    for index, what in enumerate(("output", "gradient")):
        truth, plain, mine = (results[name][index].float() for name in ("truth", "torch varlen", "triton"))
        allowed = 2 * (plain - truth).norm()
        if not (mine - truth).norm() <= allowed:
            raise SystemExit(f"varlen_attention's {what} is wrong: error {(mine - truth).norm():.3e}, allowed {allowed:.3e}")


def bench(table: Table, heads: int, head_dim: int) -> None:
    """4 rows of 8192 frames of lognormal documents."""
    documents = lognormal_documents(ROWS, FRAMES)
    starts = boundaries(documents, FRAMES)
    qkv = random(ROWS, FRAMES, heads, 3, head_dim)
    size = 2.0 * ROWS * FRAMES * heads * head_dim
    flops = 4.0 * heads * head_dim * pairs(documents, FRAMES)
    shape = f"{ROWS}x{FRAMES} packed {heads}x{head_dim}"
    backends = {
        "triton": lambda x: varlen_attention(x, starts, backend="triton"),
        "torch varlen": torch_varlen(documents, FRAMES),
        "flex": flex(documents, FRAMES),
        "cudnn dense": cudnn,
    }
    for name, run in backends.items():
        add_both(table, "varlen_attention", shape, name, run, [qkv], (4 * size, 8 * size), flops)


def bench_single(table: Table) -> None:
    """One document of 8192 frames, head width 128."""
    documents = [[0]]
    qkv = random(1, FRAMES, 12, 3, 128)
    size = 2.0 * FRAMES * 12 * 128
    flops = 4.0 * 12 * 128 * pairs(documents, FRAMES)
    starts = boundaries(documents, FRAMES)
    backends = {
        "triton": lambda x: varlen_attention(x, starts, backend="triton"),
        "torch varlen": torch_varlen(documents, FRAMES),
        "cudnn": cudnn,
    }
    for name, run in backends.items():
        add_both(table, "varlen_attention", f"1x{FRAMES} one document 12x128", name, run, [qkv], (4 * size, 8 * size), flops)
