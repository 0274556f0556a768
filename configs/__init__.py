"""All choices of a run, a farm, a codec training and a cluster, validated before anything heavy is imported.

Frozen pydantic models; YAML in, YAML out; an unknown key is an error. Imports no torch, ray or deepspeed, so a login
node can validate a job.
"""

from uniaudio.configs.codec import CodecConfig
from uniaudio.configs.data import DataConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config, load_config
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.optim import OptimConfig
from uniaudio.configs.parallel import ParallelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.configs.train import TrainConfig

__all__ = [
    "CodecConfig",
    "DataConfig",
    "FarmConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "RunConfig",
    "TrainConfig",
    "dump_config",
    "load_config",
]
