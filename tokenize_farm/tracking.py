"""What MLflow is told of a farm: one run for its whole life, through every rerun over the same output folder. The driver only."""

from pathlib import Path, PurePosixPath

from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config
from uniaudio.store import StoredRun
from uniaudio.tokenize_farm.manifest import is_address


class Tracker(StoredRun):
    """The MLflow run of a farm. `run_id` continues that run where the store has it; otherwise a new one is made."""

    def __init__(self, config: FarmConfig, *, run_id: str | None) -> None:
        """Raises UserError where the store cannot be used."""
        params = {key: str(value) for key, value in config.model_dump(mode="json").items()}
        experiment = config.experiment
        # Shards in an object store have no folder to lie beside: then the store is in the working folder.
        output_dir = Path(PurePosixPath(config.output_dir).name) if is_address(config.output_dir) else Path(config.output_dir)
        super().__init__(output_dir, experiment=experiment, run_id=run_id, params=params, config=dump_config(config))
