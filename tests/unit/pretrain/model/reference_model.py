"""The multi-scale Transformer written as plainly as possible, from the paper's text: document by document, frame by frame, code by
code, dense attention under explicit masks, no packing, no kernels. The truth that the real model is compared with."""

import math

import torch
from tiny_model import AUDIO_START

from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.data.batch import Batch

Parameters = dict[str, torch.Tensor]


def norm(p: Parameters, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x: torch.Tensor, form: str) -> torch.Tensor:
    if form == "exact":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def turned(x: torch.Tensor, times: list[int] | None) -> torch.Tensor:
    """x (L, H): the pairs (i, i + H/2) as complex numbers, turned by time * 10000^(-2i/H)."""
    if times is None:
        return x
    half = x.shape[1] // 2
    angles = torch.tensor([[time * 10_000.0 ** (-i / half) for i in range(half)] for time in times], dtype=x.dtype)
    pairs = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag), dim=1)


def attention(p: Parameters, name: str, x: torch.Tensor, heads: int, visible: torch.Tensor, times: list[int] | None) -> torch.Tensor:
    """x (L, D), visible (L, L) bool: row attends to column."""
    head_dim = x.shape[1] // heads
    outputs = []
    for head in range(heads):
        rows = p[f"{name}.qkv.weight"].view(heads, 3, head_dim, -1)[head]
        bias_query, bias_value = p[f"{name}.qkv.bias"].view(heads, 2, head_dim)[head]
        query, key, value = x @ rows[0].T + bias_query, x @ rows[1].T, x @ rows[2].T + bias_value
        scores = (turned(query, times) @ turned(key, times).T / math.sqrt(head_dim)).masked_fill(~visible, -math.inf)
        outputs.append(torch.softmax(scores, dim=-1) @ value)
    return torch.cat(outputs, dim=-1) @ p[f"{name}.out.weight"].T + p[f"{name}.out.bias"]


def block(
    p: Parameters, name: str, x: torch.Tensor, heads: int, visible: torch.Tensor, config: ModelConfig, times: list[int] | None = None
) -> torch.Tensor:
    x = x + attention(p, f"{name}.attention", norm(p, f"{name}.attention_norm", x, config.norm_eps), heads, visible, times)
    inner = norm(p, f"{name}.mlp_norm", x, config.norm_eps) @ p[f"{name}.mlp.up.weight"].T + p[f"{name}.mlp.up.bias"]
    return x + gelu(inner, config.gelu) @ p[f"{name}.mlp.down.weight"].T + p[f"{name}.mlp.down.bias"]


def frame_vector(p: Parameters, codes_Q: list[int], config: ModelConfig) -> torch.Tensor:
    vectors = [p["embed.code.weight"][code] for code in codes_Q]
    return torch.stack(vectors).sum(0) if config.embedding == "sum" else torch.cat(vectors)


def times_of(codes_T: list[int]) -> list[int]:
    """Frames since the last `<audio_start>` that a place has been shown, or since the document's first."""
    times = [0]
    for code in codes_T[:-1]:
        times.append(0 if code == AUDIO_START else times[-1] + 1)
    return times


def document_logits(
    p: Parameters, codes_TQ: list[list[int]], text: dict[int, torch.Tensor], prefix: int, config: ModelConfig, mega: tuple[int, int]
) -> torch.Tensor:
    """(T, Q, V) of one document; text: frame -> state."""
    frames, levels = len(codes_TQ), config.num_codebooks
    inputs = []
    for t in range(frames):
        before = frame_vector(p, codes_TQ[t - 1] if t else [mega[0]] * levels, config)
        if t - 1 in text:
            before = p["embed.text.weight"] @ text[t - 1] + p["embed.text.bias"]
        inputs.append(before + p["embed.position.weight"][t] if config.positions == "learned" else before)
    x = torch.stack(inputs)
    times = None if config.positions == "learned" else times_of([frame[0] for frame in codes_TQ])
    prefix = prefix if config.prefix_lm else 0
    visible = torch.tensor([[key <= query or key < prefix for key in range(frames)] for query in range(frames)])
    for layer in range(config.global_layers):
        x = block(p, f"global_blocks.{layer}", x, config.num_heads, visible, config, times)
    x = norm(p, "link.norm", x, config.norm_eps)
    causal = torch.tensor([[key <= query for key in range(levels)] for query in range(levels)])
    width = config.width // levels
    logits = []
    for t in range(frames):
        local = []
        for q in range(levels):
            part = x[t] if config.link == "shared" else x[t, q * width : (q + 1) * width]
            code = codes_TQ[t][q - 1] if q else mega[1]
            linked = p["link.linear.weight"] @ part + p["link.linear.bias"]
            local.append(linked + p["link.code.weight"][code] + p["link.level.weight"][q])
        y = torch.stack(local)
        for layer in range(config.local_layers):
            y = block(p, f"local_blocks.{layer}", y, config.local_heads, causal, config)
        logits.append(norm(p, "head.norm", y, config.norm_eps) @ p["head.projection.weight"].T)
    return torch.stack(logits)


def reference(p: Parameters, batch: Batch, config: ModelConfig, *, vocabulary_size: int, mega: tuple[int, int], num_tasks: int):
    """(logits_BTQV, loss_sums_KQ, counts_KQ) of a packed batch, unpacked document by document; gradients flow to `p`."""
    rows, frames, levels = batch.codes_BTQ.shape
    logits = torch.zeros(rows, frames, levels, vocabulary_size, dtype=p["head.projection.weight"].dtype)
    sums = [[0.0] * levels for _ in range(num_tasks)]
    counts = torch.zeros(num_tasks, levels)
    for row in range(rows):
        starts = [int(start) for start in batch.document_starts_BD[row] if start < frames]
        for index, start in enumerate(starts):
            end = starts[index + 1] if index + 1 < len(starts) else frames
            text = {
                int(place) - start: batch.text_states_BSC[row, slot].to(logits.dtype)
                for slot, place in enumerate(batch.text_positions_BS[row])
                if start <= place < end
            }
            codes = batch.codes_BTQ[row, start:end].tolist()
            out = document_logits(p, codes, text, int(batch.prefix_lengths_BD[row, index]), config, mega)[..., :vocabulary_size]
            logits[row, start:end] = out.detach()
            task = int(batch.task_ids_BD[row, index])
            for t in range(end - start):
                for q in range(levels):
                    if batch.target_mask_BTQ[row, start + t, q]:
                        sums[task][q] = sums[task][q] - torch.log_softmax(out[t, q], dim=-1)[codes[t][q]]
                        counts[task, q] += 1
    return logits, torch.stack([torch.stack([torch.as_tensor(value) for value in row]) for row in sums]), counts
