"""Initial values as a function of (seed, canonical parameter name) alone, so that every layout starts from the same weights.

Each whole tensor is drawn on the CPU from its own generator and then cut; rows that only pad the vocabulary are zero.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from uniaudio.configs.model import ModelConfig
from uniaudio.pretrain.parallel.tensor import TensorParallel, is_cut


def named_generator(seed: int, name: str) -> torch.Generator:
    """The generator that a parameter's initial value is drawn from."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


# Beside the link's map in the local input; with init_std the map would drown them (its output is sqrt(its input width) times larger), and
# the local stack would need hundreds of steps to tell one level from another: 40 steps of the demo, 6.73 nats a code instead of 7.75.
LOCAL_EMBEDDINGS = ("link.code.weight", "link.level.weight")


def _std(name: str, config: ModelConfig) -> float:
    """init_std; what is added to the residual stream is divided by sqrt(number of additions of its stack) (GPT-2); the embeddings of the
    local stack start as large as the output of the link's map that they are added to."""
    if name in LOCAL_EMBEDDINGS:
        input_width = config.width // config.num_codebooks if config.link == "split" else config.width
        return config.init_std * input_width**0.5
    if not name.endswith(("attention.out.weight", "mlp.down.weight")):
        return config.init_std
    layers = config.global_layers if name.startswith("global_blocks.") else config.local_layers
    return config.init_std / (2 * layers) ** 0.5


def whole_tensor(name: str, shape: tuple[int, ...], *, seed: int, config: ModelConfig) -> torch.Tensor:
    """Initial value, float32 on the CPU, of the uncut and unpadded parameter `name`."""
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    return torch.empty(shape).normal_(0.0, _std(name, config), generator=named_generator(seed, name))


def initialize_parameters(model: nn.Module, *, seed: int, config: ModelConfig, tensor: TensorParallel, prefix: str = "") -> None:
    """Fills every parameter of `model` that has memory, in place; its canonical name is `prefix` + its own.

    Parameters are drawn side by side on torch's number of threads: one generator each, so the order does not matter.
    """

    def fill(entry: tuple[str, nn.Parameter]) -> None:
        name, parameter = entry
        cut = parameter.partition_dim if is_cut(parameter) else -1
        shape = list(parameter.shape)
        if cut >= 0:
            shape[cut] *= tensor.size
        padded = shape[0]
        shape[0] = getattr(parameter, "valid_rows", padded)
        value = whole_tensor(name, tuple(shape), seed=seed, config=config)
        if shape[0] < padded:
            value = torch.cat([value, value.new_zeros(padded - shape[0], *shape[1:])])
        parameter.data.copy_(value.chunk(tensor.size, dim=cut)[tensor.rank] if cut >= 0 else value)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, [named for named in model.named_parameters(prefix=prefix) if not named[1].is_meta]))
