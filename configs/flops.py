"""Counts of operations and parameters: for MFU, for balancing pipeline stages, for planning.

One multiply-add is two operations. Training costs three forward passes (the backward pass computes two products for each of the
forward's). Attention of the global stack is counted as causal over whole rows of T frames (docs of the measurements), whatever the
packing saves; that of the local stack, a few codes wide, is left out.
"""

from uniaudio.configs.model import ModelConfig

# Dense bf16 FLOP/s of a device whose name holds the key (vendors' data sheets).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


def _block_weights(config: ModelConfig) -> int:
    """Entries of the matrices of one block: q, k, v, output and the two of the MLP."""
    return 4 * config.width**2 + 2 * config.width * config.ffn_width


def layer_flops(config: ModelConfig, T: int, vocabulary_size: int) -> list[float]:
    """Training operations a frame of each layer, in the order of `MultiScaleTransformer.named_layers`."""
    block = 6.0 * _block_weights(config)
    attention = 3.0 * 2 * T * config.width
    head = 6.0 * config.num_codebooks * config.width * vocabulary_size
    return [
        0.0,
        *[block + attention] * config.global_layers,
        0.0,
        *[config.num_codebooks * block] * config.local_layers,
        head,
    ]


def flops_per_frame(config: ModelConfig, T: int, vocabulary_size: int) -> float:
    """Training operations a frame (Q codes) in rows of T frames; `vocabulary_size` counts the padded rows that are computed.

    For the paper's shape: 6 (24 12 D^2 + Q 8 12 D^2 + Q D V) + 3 24 2 T D.
    """
    return sum(layer_flops(config, T, vocabulary_size))


def parameter_count(config: ModelConfig, vocabulary_size: int) -> int:
    """Trained parameters of the whole model, rows that pad the vocabulary left out."""
    width, levels = config.width, config.num_codebooks
    norm = 2 * width
    block = _block_weights(config) + 2 * norm + (2 * width + width) + (config.ffn_width + width)
    code_width = width if config.embedding == "sum" else width // levels
    embed = vocabulary_size * code_width + config.max_positions * width + (config.text_width + 1) * width
    link_width = width if config.link == "shared" else width // levels
    link = norm + (link_width + 1) * width + vocabulary_size * width + levels * width
    head = norm + vocabulary_size * width
    return embed + link + head + (config.global_layers + config.local_layers) * block
