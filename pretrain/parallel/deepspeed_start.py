"""DeepSpeed as this project starts it: silent, without building anything, on process groups that are there already; and its config."""

import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist

from uniaudio.configs.run import RunConfig


def deepspeed_config(run: RunConfig, device: torch.device) -> dict[str, Any]:
    """What `deepspeed.initialize` takes. It clips under every ZeRO stage but 0, where the engine does."""
    return {
        "train_micro_batch_size_per_gpu": run.data.rows_per_micro_batch,
        "gradient_accumulation_steps": run.optim.gradient_accumulation,
        "gradient_clipping": run.optim.clip_norm if run.parallel.zero_stage else 0.0,
        "zero_optimization": {"stage": run.parallel.zero_stage, "overlap_comm": False, **_offload(run, device)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as fast on the host, and needs no compiler there
        "bf16": {"enabled": run.train.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
        "steps_per_print": 2**31 - 1,
        "timers": {"throughput": {"enabled": False}},  # it makes the host wait for the device twice a step
    }


def _offload(run: RunConfig, device: torch.device) -> dict[str, Any]:
    if not run.parallel.offload_optimizer:
        return {}
    return {"offload_optimizer": {"device": "cpu", "pin_memory": device.type == "cuda"}}


def import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed for this device, silent below warnings; it reads DS_ACCELERATOR at import, and builds no op."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else its first collective compiles C++ (and waits for a stale lock)
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # names of collectives that DeepSpeed still uses
    return deepspeed


def init_process_group(device: torch.device) -> None:
    """A process of its own is a world of one; more were joined by `parallel.layout`."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
