"""Counts of operations and parameters: for MFU, for balancing pipeline stages, for planning.

One multiply-add is two operations. Training costs three forward passes (the backward pass computes two products for each of the
forward's). Attention of the global stack is counted as causal over whole rows of T frames (docs of the measurements), whatever the
packing saves; that of the local stack, a few codes wide, is left out.
"""

import math

from uniaudio.configs.finetune import FinetuneConfig, adapter_names
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.run import RunConfig

# Dense bf16 FLOP/s of a device whose name holds the key (vendors' data sheets).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


def _block_weights(config: ModelConfig) -> int:
    """Entries of the matrices of one block: q, k, v, output and the two of the MLP."""
    return 4 * config.width**2 + 2 * config.width * config.ffn_width


def layer_flops(config: ModelConfig, T: int, vocabulary_size: int) -> list[float]:
    """Training operations a frame of each layer, in the order of `MultiScaleTransformer.named_layers`."""
    steps = config.steps_per_frame  # counted for every frame, also for those of conditions that stay one step
    block = 6.0 * _block_weights(config)
    attention = 3.0 * 2 * T * steps * config.width
    head = 6.0 * config.num_codebooks * config.width * vocabulary_size
    return [
        0.0,
        *[steps * (block + attention)] * config.global_layers,
        0.0,
        *[config.num_codebooks * block] * config.local_layers,
        head,
    ]


def flops_per_frame(config: ModelConfig, T: int, vocabulary_size: int) -> float:
    """Training operations a frame (Q codes) in rows of T frames; `vocabulary_size` counts the padded rows that are computed.

    For the paper's shape: 6 (24 12 D^2 + Q 8 12 D^2 + Q D V) + 3 24 2 T D.
    """
    return sum(layer_flops(config, T, vocabulary_size))


def parameter_shapes(config: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every parameter of the whole model, in the order of its layers."""
    width, inner, levels = config.width, config.ffn_width, config.num_codebooks
    code_width = width if config.embedding == "sum" else width // levels
    link_width = width if config.link == "shared" else width // levels
    block = {
        "attention_norm.weight": (width,),
        "attention_norm.bias": (width,),
        "attention.qkv.weight": (3 * width, width),
        "attention.qkv.bias": (2 * width,),
        "attention.out.weight": (width, width),
        "attention.out.bias": (width,),
        "mlp_norm.weight": (width,),
        "mlp_norm.bias": (width,),
        "mlp.up.weight": (inner, width),
        "mlp.up.bias": (inner,),
        "mlp.down.weight": (width, inner),
        "mlp.down.bias": (width,),
    }
    return {
        "embed.code.weight": (vocabulary_size, code_width),
        **({"embed.position.weight": (config.max_positions, width)} if config.positions == "learned" else {}),
        "embed.text.weight": (width, config.text_width),
        "embed.text.bias": (width,),
        **{f"global_blocks.{index}.{name}": shape for index in range(config.global_layers) for name, shape in block.items()},
        "link.norm.weight": (width,),
        "link.norm.bias": (width,),
        "link.linear.weight": (width, link_width),
        "link.linear.bias": (width,),
        **({"link.code.weight": (vocabulary_size, width)} if config.local_layers else {}),
        "link.level.weight": (levels, width),
        **{f"local_blocks.{index}.{name}": shape for index in range(config.local_layers) for name, shape in block.items()},
        "head.norm.weight": (width,),
        "head.norm.bias": (width,),
        "head.projection.weight": (vocabulary_size, width),
    }


def parameter_count(config: ModelConfig, vocabulary_size: int) -> int:
    """Parameters of the whole model, without adapters."""
    return sum(map(math.prod, parameter_shapes(config, vocabulary_size).values()))


def adapter_shapes(finetune: FinetuneConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the adapters on a model of these parameters: A (rank, input), B (output, rank)."""
    adapters: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if finetune.lora.adapts(name):
            a, b = adapter_names(name)
            adapters |= {a: (finetune.lora.rank, shape[1]), b: (shape[0], finetune.lora.rank)}
    return adapters


# Parameters of a global block that tensor parallelism cuts; all others are whole on every rank (`pretrain.parallel.tensor`).
_CUT = ("attention.qkv.weight", "attention.qkv.bias", "attention.out.weight", "mlp.up.weight", "mlp.up.bias", "mlp.down.weight")


def is_cut(name: str) -> bool:
    """Whether tensor parallelism cuts the parameter of this canonical name."""
    return name.startswith("global_blocks.") and name.endswith(_CUT)


def trained_count(run: RunConfig, vocabulary_size: int) -> tuple[int, int]:
    """(parameters that change, parameters that are frozen) of a run, adapters included."""
    whole, cut = _counts(run, vocabulary_size)
    return whole[0] + cut[0], whole[1] + cut[1]


def rank_count(run: RunConfig, vocabulary_size: int) -> tuple[float, float]:
    """The same of one tensor-parallel rank."""
    whole, cut = _counts(run, vocabulary_size)
    size = run.parallel.tensor_parallel_size
    return whole[0] + cut[0] / size, whole[1] + cut[1] / size


def whole_count(run: RunConfig, vocabulary_size: int) -> int:
    """Parameters that change and that every tensor-parallel rank has whole."""
    return _counts(run, vocabulary_size)[0][0]


def _counts(run: RunConfig, vocabulary_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(trained, frozen) of what tensor parallelism leaves whole, and of what it cuts."""
    shapes = parameter_shapes(run.model, vocabulary_size)
    shapes |= adapter_shapes(run.finetune, shapes)

    def count(cut: bool, trained: bool) -> int:
        return sum(math.prod(shape) for name, shape in shapes.items() if (is_cut(name), run.finetune.trains(name)) == (cut, trained))

    return (count(False, True), count(False, False)), (count(True, True), count(True, False))
