"""Where a job runs. Today: this machine."""

from typing import Literal

from pydantic import Field

from uniaudio.configs.section import Section


class ClusterConfig(Section):
    """What `uniaudio submit --cluster` reads."""

    kind: Literal["local"] = "local"
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables set for the job; secrets belong in your own environment, not here"
    )
    log_dir: str = Field("work/logs", description="folder of the job's output")
