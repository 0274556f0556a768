"""The released model's mathematics on its own state dict, written from its description alone: the truth that an import is compared with.

It shares nothing with the package. Ids come as (B, T * Q), frame after frame; p is a state dict of the released names.
"""

import math
from dataclasses import dataclass

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """layers and heads of the global stack, width D, codes Q a frame, ids V, rows of the table of positions."""

    layers: int
    heads: int
    width: int
    codes: int
    ids: int
    positions: int

    @property
    def local_layers(self) -> int:
        return min(8, self.layers // 2)


def state_dict(shape: Shape, seed: int) -> Tensors:
    """Random parameters of every released name; biases and norms far from their initial values, so that none can be mixed up unseen."""
    draw = torch.Generator().manual_seed(seed)

    def random(*sizes: int, scale: float) -> torch.Tensor:
        return torch.randn(sizes, generator=draw) * scale

    d, q, v = shape.width, shape.codes, shape.ids
    p: Tensors = {}

    def linear(name: str, rows: int, columns: int, *, bias: bool = True) -> None:
        p[f"{name}.weight"] = random(rows, columns, scale=columns**-0.5)
        if bias:
            p[f"{name}.bias"] = random(rows, scale=0.3)

    def norm(name: str) -> None:
        p[f"{name}.weight"], p[f"{name}.bias"] = 1 + random(d, scale=0.2), random(d, scale=0.2)

    def stack(name: str, layers: int) -> None:
        for layer in range(layers):
            here = f"{name}.{layer}"
            for part in ("query", "key", "value", "out"):
                linear(f"{here}.attn.{part}", d, d, bias=part != "key")
            linear(f"{here}.mlp.0", 4 * d, d)
            linear(f"{here}.mlp.2", d, 4 * d)
            norm(f"{here}.attn_ln")
            norm(f"{here}.mlp_ln")

    p["g_emb.weight"], p["g_pos.weight"] = random(v, d // q, scale=1), random(shape.positions, d, scale=0.5)
    stack("g_layers", shape.layers)
    norm("g_ln")
    p["l_emb.weight"], p["l_pos.weight"] = random(v, d, scale=1), random(q, d, scale=0.5)
    stack("l_layers", shape.local_layers)
    norm("l_ln")
    linear("g2l_linear", d, d // q)
    linear("lm_head", v, d, bias=False)
    linear("continuous_mappings.text_t5", d, 768)
    return p


def linear(p: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def norm(p: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def attention(p: Tensors, name: str, x: torch.Tensor, heads: int, hidden: torch.Tensor) -> torch.Tensor:
    """x (B, L, D); hidden (B, L, L): True where the row must not see the column. Heads are consecutive slices of D."""
    size = x.shape[-1] // heads
    wholes = [linear(p, f"{name}.{which}", x) for which in ("query", "key", "value")]
    outputs = []
    for head in range(heads):
        query, key, value = (whole[..., head * size : (head + 1) * size] for whole in wholes)
        scores = (query @ key.transpose(1, 2)) / math.sqrt(size)
        outputs.append(scores.masked_fill(hidden, -math.inf).softmax(dim=-1) @ value)
    return linear(p, f"{name}.out", torch.cat(outputs, dim=-1))


def stack(p: Tensors, name: str, layers: int, x: torch.Tensor, heads: int, hidden: torch.Tensor) -> torch.Tensor:
    for layer in range(layers):
        here = f"{name}.{layer}"
        x = x + attention(p, f"{here}.attn", norm(p, f"{here}.attn_ln", x), heads, hidden)
        inner = linear(p, f"{here}.mlp.0", norm(p, f"{here}.mlp_ln", x))
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        x = x + linear(p, f"{here}.mlp.2", inner)
    return x


def logits(
    p: Tensors,
    shape: Shape,
    ids: torch.Tensor,
    *,
    mega_global: int,
    mega_local: int,
    text: list[dict[int, torch.Tensor]] | None = None,
    target: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, T * Q, V). text: for each row, frame -> its state (768,). target (B, T) bool, with prefix-LM: frames of the target part."""
    rows, q = ids.shape[0], shape.codes
    frames = ids.shape[1] // q
    begin = torch.full((rows, q), mega_global)
    embedded = p["g_emb.weight"][torch.cat([begin, ids[:, :-q]], dim=1)].reshape(rows, frames, shape.width)
    for row, states in enumerate(text or []):
        for frame, state in states.items():
            embedded[row, frame + 1] = linear(p, "continuous_mappings.text_t5", state)
    x = embedded + p["g_pos.weight"][:frames]
    hidden = torch.ones(frames, frames, dtype=torch.bool).triu(1).repeat(rows, 1, 1)
    for row in range(rows if target is not None else 0):
        moved = [False, *target[row, :-1].tolist()]  # like the input, one frame right
        hidden[row, :, : moved.index(True)] = False
    x = norm(p, "g_ln", stack(p, "g_layers", shape.layers, x, shape.heads, hidden))
    slices = linear(p, "g2l_linear", x.reshape(rows * frames, q, shape.width // q))
    codes = ids.reshape(rows * frames, q)
    before = torch.cat([torch.full((rows * frames, 1), mega_local), codes[:, :-1]], dim=1)
    y = p["l_emb.weight"][before] + slices + p["l_pos.weight"]
    hidden = torch.ones(q, q, dtype=torch.bool).triu(1).repeat(rows * frames, 1, 1)
    y = norm(p, "l_ln", stack(p, "l_layers", shape.local_layers, y, shape.heads, hidden))
    return linear(p, "lm_head", y).reshape(rows, frames * q, shape.ids)
