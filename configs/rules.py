"""All rules between sections, in one place: what must divide what, what excludes what."""

import itertools
from fnmatch import filter as matching

from uniaudio.configs.flops import parameter_shapes
from uniaudio.configs.run import RunConfig
from uniaudio.configs.section import Section
from uniaudio.errors import UserError


def check(config: Section) -> None:
    """Raises UserError for the first rule that the config breaks; configs without rules pass."""
    if isinstance(config, RunConfig):
        check_run(config)


def divisors(number: int) -> list[int]:
    """All divisors of `number`, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def _must_divide(key: str, value: int, what: str, number: int) -> None:
    if number % value:
        raise UserError(f"{key} does not divide {what} ({number})", seen=value, allowed=", ".join(map(str, divisors(number))))


def check_run(run: RunConfig) -> None:
    """The rules of a training run."""
    _check_model(run)
    _check_tensor_parallel(run)
    _check_pipeline(run)
    _check_training(run)
    _check_graphs(run)
    if run.finetune.active:
        _check_finetune(run)


def _check_model(run: RunConfig) -> None:
    model = run.model
    _must_divide("model.num_heads", model.num_heads, "model.width", model.width)
    _must_divide("model.local_num_heads", model.local_heads, "model.width", model.width)
    for key, heads in (("model.num_heads", model.num_heads), ("model.local_num_heads", model.local_heads)):
        if (head_dim := model.width // heads) % 8:
            raise UserError(
                f"{key}: the width of a head is no multiple of 8", seen=f"{model.width} / {heads} = {head_dim}", allowed="8, 16, 24, ..."
            )
    if model.prefix_lm and run.data.loss_on == "all":
        raise UserError(
            "model.prefix_lm with data.loss_on all: conditions would see the codes that they are to predict",
            seen="loss_on all",
            allowed="loss_on target",
            remedy="set data.loss_on=target or model.prefix_lm=false",
        )
    if run.data.hide_history and run.data.loss_on == "all":
        raise UserError(
            "data.hide_history with data.loss_on all: the conditions would be hidden too",
            seen=f"hide_history {run.data.hide_history}, loss_on all",
            allowed="hide_history 0 or loss_on target",
            remedy="set data.loss_on=target or data.hide_history=0",
        )
    if model.prefix_lm and model.attention != "kernels":
        raise UserError(
            "model.attention of a library knows no bidirectional prefix, which model.prefix_lm asks for",
            seen=model.attention,
            allowed="kernels",
            remedy="set model.attention=kernels or model.prefix_lm=false",
        )
    if model.embedding == "concat" or model.link == "split":
        _must_divide("model.num_codebooks", model.num_codebooks, "model.width (embedding: concat, link: split)", model.width)
    _check_structure(run)
    shifts = 3 * (model.num_codebooks - 1) if model.structure == "delay" else 0  # a document has three runs of audio at most
    if run.data.frames_per_row * model.steps_per_frame + shifts > model.max_positions:
        steps = f" x {model.steps_per_frame} steps + {shifts}" if model.structure != "multi_scale" else ""
        raise UserError(
            "data.frames_per_row exceeds model.max_positions",
            seen=f"{run.data.frames_per_row}{steps}",
            allowed=f"up to {model.max_positions}",
            remedy="shorter rows or a longer table of positions",
        )


def _check_structure(run: RunConfig) -> None:
    model, parallel = run.model, run.parallel
    local = model.structure == "multi_scale"
    if local != (model.local_layers > 0):
        raise UserError(
            "model.local_layers: multi_scale has a local stack, the other structures have none",
            seen=f"{model.local_layers}, model.structure {model.structure}",
            allowed="1 or more" if local else "0",
            remedy="give the others as many more global_layers",
        )
    if not local and (model.num_codebooks == 1 or parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1):
        raise UserError(
            "model.structure other than multi_scale: for several codebooks, on whole models",
            seen=f"{model.structure}, model.num_codebooks {model.num_codebooks}, parallel.tensor_parallel_size "
            f"{parallel.tensor_parallel_size}, parallel.pipeline_parallel_size {parallel.pipeline_parallel_size}",
            allowed="2 or more, 1, 1",
        )


def _check_tensor_parallel(run: RunConfig) -> None:
    model, parallel = run.model, run.parallel
    tensor = parallel.tensor_parallel_size
    _must_divide("parallel.tensor_parallel_size", tensor, "model.num_heads", model.num_heads)
    _must_divide("parallel.tensor_parallel_size", tensor, "model.ffn_width", model.ffn_width)
    frames = run.data.rows_per_micro_batch * run.data.frames_per_row
    _must_divide("parallel.tensor_parallel_size", tensor, "the frames of a micro-batch", frames)


def _check_pipeline(run: RunConfig) -> None:
    model, parallel = run.model, run.parallel
    layers = model.global_layers + model.local_layers + 3
    if parallel.pipeline_parallel_size > layers:
        raise UserError("parallel.pipeline_parallel_size exceeds the layers", seen=parallel.pipeline_parallel_size, allowed=f"1..{layers}")
    if (bounds := parallel.stage_bounds) is not None:
        ascending = all(a < b for a, b in itertools.pairwise(bounds))
        if len(bounds) != parallel.pipeline_parallel_size + 1 or bounds[0] != 0 or bounds[-1] != layers or not ascending:
            raise UserError(
                "parallel.stage_bounds",
                seen=list(bounds),
                allowed=f"{parallel.pipeline_parallel_size + 1} ascending numbers from 0 to {layers}, the number of layers",
            )
    if parallel.pipeline_parallel_size > 1 and parallel.zero_stage > 1:
        raise UserError(
            "parallel.zero_stage under a pipeline",
            seen=parallel.zero_stage,
            allowed="0, 1",
            remedy="or set parallel.pipeline_parallel_size=1",
        )


def _check_training(run: RunConfig) -> None:
    model, parallel = run.model, run.parallel
    if run.train.precision == "bf16" and parallel.zero_stage == 0:
        raise UserError(
            "train.precision bf16 needs the fp32 master weights of parallel.zero_stage 1 or more",
            seen="parallel.zero_stage 0",
            allowed="1, 2, 3",
            remedy="set parallel.zero_stage=1: it costs nothing on one data-parallel rank",
        )
    if parallel.offload_optimizer and parallel.zero_stage < 2:
        raise UserError(
            "parallel.offload_optimizer needs an optimizer step of DeepSpeed's own",
            seen=f"parallel.zero_stage {parallel.zero_stage}",
            allowed="2, 3",
            remedy="set parallel.zero_stage=2",
        )
    if run.train.fp8 and (run.train.precision != "bf16" or parallel.tensor_parallel_size > 1 or model.width % 16 or model.ffn_width % 16):
        raise UserError(
            "train.fp8 needs bf16 around it, whole layers, and widths that are multiples of 16",
            seen=f"train.precision {run.train.precision}, parallel.tensor_parallel_size {parallel.tensor_parallel_size}, "
            f"model.width {model.width}, model.ffn_width {model.ffn_width}",
            allowed="bf16; 1; multiples of 16",
            remedy="set train.precision=bf16 parallel.zero_stage=1 parallel.tensor_parallel_size=1",
        )
    if parallel.backend == "nccl" and run.train.device == "cpu":
        raise UserError("parallel.backend nccl needs CUDA", seen="train.device cpu", allowed="auto, gloo")


def can_graph(run: RunConfig) -> bool:
    """Whether the step's layers may be captured as CUDA graphs, if the device is one of CUDA.

    Elsewhere gradients wait longer than until the next forward pass (other ZeRO stages), micro-batches have other lengths (structures that
    arrange codes), or it was never run (others' attention).
    """
    ours = run.model.kernels != "torch" and run.model.attention == "kernels" and run.model.structure == "multi_scale"
    settled = run.parallel.backend != "gloo" and run.parallel.zero_stage == 1 and run.train.precision == "bf16"
    return ours and settled and run.train.device != "cpu"


def wants_graphs(run: RunConfig) -> bool:
    """`train.cuda_graphs`: auto is wherever they are possible."""
    return can_graph(run) if run.train.cuda_graphs == "auto" else run.train.cuda_graphs


def _check_graphs(run: RunConfig) -> None:
    model, parallel = run.model, run.parallel
    if run.train.cuda_graphs is True and not can_graph(run):
        raise UserError(
            "train.cuda_graphs works with bf16 under ZeRO-1, with this project's kernels and structure, on CUDA",
            seen=f"train.precision {run.train.precision}, parallel.zero_stage {parallel.zero_stage}, model.kernels {model.kernels}, "
            f"model.attention {model.attention}, model.structure {model.structure}, train.device {run.train.device}",
            allowed="bf16, 1, auto or triton, kernels, multi_scale, auto or cuda",
            remedy="set train.cuda_graphs=auto, which leaves them out where they are not possible",
        )


def _check_finetune(run: RunConfig) -> None:
    tune, parallel = run.finetune, run.parallel
    if run.train.init_from is None:
        raise UserError(
            "finetune freezes parameters that would have their initial, random values",
            seen="train.init_from none",
            allowed="a checkpoint or an export",
            remedy="set train.init_from, or leave the section finetune out",
        )
    whole = parallel.tensor_parallel_size == parallel.pipeline_parallel_size == 1
    if not whole or parallel.zero_stage == 3 or run.train.fp8:
        raise UserError(
            "finetune with frozen parameters or adapters works on whole layers and whole weights",
            seen=f"parallel.tensor_parallel_size {parallel.tensor_parallel_size}, parallel.pipeline_parallel_size "
            f"{parallel.pipeline_parallel_size}, parallel.zero_stage {parallel.zero_stage}, train.fp8 {str(run.train.fp8).lower()}",
            allowed="1, 1, 0 to 2, false",
            remedy="spread it by parallel.data_parallel_size, or train all parameters",
        )
    if tune.lora.rank > run.model.width:
        raise UserError("finetune.lora.rank exceeds model.width", seen=tune.lora.rank, allowed=f"0 to {run.model.width}, best far below")
    names = list(parameter_shapes(run.model, 1))
    for key, patterns in (("freeze", tune.freeze), ("thaw", tune.thaw)):
        if strange := [pattern for pattern in patterns if not matching(names, pattern)]:
            raise UserError(
                f"finetune.{key}: no parameter of that name",
                seen=", ".join(strange),
                allowed="names as global_blocks.0.attention.qkv.weight, with * for any letters: embed.*, local_blocks.*, *_norm.*, head.*",
            )
    if not tune.lora.rank and not any(map(tune.trains, names)):
        raise UserError("finetune.freeze leaves nothing to train", seen=", ".join(tune.freeze), remedy="thaw some, or set lora.rank")
