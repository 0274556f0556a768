"""A training run: one section each, and the rules between sections."""

from uniaudio.configs.data import DataConfig
from uniaudio.configs.finetune import FinetuneConfig
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.optim import OptimConfig
from uniaudio.configs.parallel import ParallelConfig
from uniaudio.configs.section import Section
from uniaudio.configs.train import TrainConfig


class RunConfig(Section):
    """What `uniaudio train` reads. `configs/rules.py` holds what must agree between the sections."""

    model: ModelConfig = ModelConfig()
    data: DataConfig
    parallel: ParallelConfig = ParallelConfig()
    optim: OptimConfig = OptimConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    train: TrainConfig

    @property
    def frames_per_step(self) -> int:
        """Frames of one optimizer step over all ranks."""
        rows = self.data.rows_per_micro_batch * self.optim.gradient_accumulation * self.parallel.data_parallel_size
        return rows * self.data.frames_per_row
