"""Which path each op of the model takes, chosen once when the model is built: no op decides by itself at run time."""

from uniaudio.kernels.checks import TRITON_OPS
from uniaudio.log import get_logger
from uniaudio.pretrain.parallel.tensor import Backend

OPS = ("frame_embedding", "layer_norm", "add_layer_norm", "varlen_attention", "frame_attention", "bias_gelu", "linear_cross_entropy")


def op_backend(op: str, backend: Backend) -> Backend:
    """The model's backend where the kernels have `op` for it, the plain PyTorch path otherwise."""
    return "torch" if backend == "triton" and op not in TRITON_OPS else backend


def log_choice(backend: Backend) -> None:
    """Says which ops have no Triton kernel yet, where that is what was asked for."""
    plain = [op for op in OPS if op_backend(op, backend) != backend]
    if plain:
        get_logger("model").info("kernels: %s; plain PyTorch for %s", backend, ", ".join(plain))
