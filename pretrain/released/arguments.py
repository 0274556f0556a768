"""The YAML beside a released checkpoint: training arguments and `token_list` -> model config, vocabulary, run config.

The vocabulary is read, not assumed. In `token_list` special tokens come first, then `<NAME_0> <NAME_1> ...` of each modality; an id is
a token's place.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, Field

from uniaudio.configs.load import parse_yaml, shipped, validate
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.configs.section import Section
from uniaudio.configs.tasks import CONTINUOUS, TaskConfig, load_task
from uniaudio.errors import UserError
from uniaudio.pretrain.data.vocabulary import Vocabulary, load_vocabulary

SHIPPED = "released"
MAX_LOCAL_LAYERS = 8
UNUSED = "<unused_special_token>"
NEEDED = ("<pad>", "<continuous_token>", "<start>", "<end>", "<audio_start>", "<audio_end>", "<mega_global>", "<mega_local>")
_ENTRY = re.compile(r"<(.+)_(\d+)>")
_OWN = "the YAML that the checkpoint's own training saved (config.yaml)"


class Arguments(Section):
    """What the importer reads of the training arguments; the others do not change the model."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    n_layer: int = Field(..., ge=2)
    n_head: int = Field(..., ge=1)
    n_embd: int = Field(..., ge=8)
    block_size: int = Field(..., ge=16)
    non_acoustic_repeat: int = Field(..., ge=1, le=32, description="Q")
    prefix_lm: bool = False
    megabytes: bool = Field(True, description="false: another architecture")
    whisper_model: bool = Field(True, description="false: another architecture")
    encoder_decoder_arch: bool = Field(False, description="true: another architecture")
    token_list: tuple[str, ...] = Field(..., min_length=1)


@dataclass(frozen=True)
class Description:
    """differences: ids at which the table departs from the shipped `released`, as (shipped, its own); empty where it is that table."""

    arguments: Arguments
    model: ModelConfig
    vocabulary: Vocabulary
    differences: list[tuple[str, str]]


def read_description(path: Path) -> Description:
    """Config and vocabulary of a released checkpoint, from the YAML beside it.

    Raises:
        UserError: no such file, a key missing or wrong, another architecture, a token list of another form.
    """
    if not path.is_file():
        raise UserError("no such file", seen=path, remedy=f"--config is {_OWN}")
    arguments = validate(Arguments, parse_yaml(path.read_text(encoding="utf-8"), source=str(path)), source=str(path))
    vocabulary = read_vocabulary(arguments.token_list, arguments.non_acoustic_repeat, source=path)
    shipped_table = load_vocabulary(SHIPPED, arguments.non_acoustic_repeat)
    differences = shipped_table.differences(vocabulary)
    model = _model_config(arguments, SHIPPED if not differences else vocabulary.name, path)
    return Description(arguments, model, vocabulary if differences else shipped_table, differences)


def _model_config(arguments: Arguments, vocabulary: str, path: Path) -> ModelConfig:
    if not (arguments.megabytes and arguments.whisper_model) or arguments.encoder_decoder_arch:
        seen = f"megabytes {arguments.megabytes}, whisper_model {arguments.whisper_model}"
        seen += f", encoder_decoder_arch {arguments.encoder_decoder_arch}"
        raise UserError(f"{path}: not the multi-scale architecture", seen=seen, allowed="megabytes true, whisper_model true, false")
    width, heads, codebooks = arguments.n_embd, arguments.n_head, arguments.non_acoustic_repeat
    if width % heads or width // heads % 8:
        raise UserError(f"{path}: n_embd is no multiple of 8 x n_head", seen=f"n_embd {width}, n_head {heads}")
    if width % codebooks:
        raise UserError(f"{path}: non_acoustic_repeat does not divide n_embd", seen=f"{codebooks}, n_embd {width}")
    return ModelConfig(
        vocabulary=vocabulary,
        num_codebooks=codebooks,
        width=width,
        num_heads=heads,
        ffn_width=4 * width,
        global_layers=arguments.n_layer,
        local_layers=min(MAX_LOCAL_LAYERS, arguments.n_layer // 2),
        max_positions=arguments.block_size,
        embedding="concat",
        link="split",
        gelu="exact",
        prefix_lm=arguments.prefix_lm,
    )


def read_vocabulary(tokens: tuple[str, ...], num_codebooks: int, *, source: Path) -> Vocabulary:
    """The table that a `token_list` spells out.

    Raises:
        UserError: a needed special token is missing or given twice, a modality's tokens are not consecutive, or audio is not
            `num_codebooks` levels and the mask.
    """
    entries = [_ENTRY.fullmatch(token) for token in tokens]
    reserved = next((index for index, entry in enumerate(entries) if entry), len(tokens))
    named = list(tokens[:reserved])
    while named and named[-1] == UNUSED:
        named.pop()
    specials = tuple(f"<unused_{index}>" if name == UNUSED else name for index, name in enumerate(named))
    if twice := sorted(name for name in set(specials) if specials.count(name) > 1):
        raise UserError(f"{source}: token_list: a special token stands twice", seen=" ".join(twice))
    if lacking := [name for name in NEEDED if name not in specials]:
        raise UserError(f"{source}: token_list lacks special tokens", seen=" ".join(lacking), remedy=f"--config is {_OWN}")
    ranges: list[tuple[str, int, int, int]] = []
    first = reserved
    for modality, group in itertools.groupby(entries[reserved:], key=lambda entry: entry[1] if entry else None):
        numbers = [int(entry[2]) if entry else -1 for entry in group]
        if modality is None or numbers != list(range(len(numbers))) or modality in [name for name, *_ in ranges]:
            seen = " ".join(tokens[first : first + 3])
            raise UserError(f"{source}: token_list from id {first}: not <NAME_0> <NAME_1> ... of a new modality", seen=f"{seen} ...")
        count, levels = len(numbers), 1
        if modality == "audio":
            levels, count = num_codebooks, _audio_entries(count, num_codebooks, source)
        ranges.append((modality, first, count, levels))
        first += len(numbers)
    if "audio" not in [name for name, *_ in ranges]:
        raise UserError(f"{source}: token_list has no tokens <audio_0> <audio_1> ...", remedy=f"--config is {_OWN}")
    return Vocabulary(source.stem, reserved, specials, "audio", tuple(ranges))


def _audio_entries(count: int, levels: int, source: Path) -> int:
    entries, rest = divmod(count - 1, levels)
    if rest or entries == 0:
        raise UserError(
            f"{source}: token_list: audio is not {levels} levels and the mask", seen=f"{count} tokens", allowed="Q x entries + 1"
        )
    return entries


def known_tasks(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The shipped tasks whose tokens and modalities the table has."""
    return tuple(name for name in shipped("tasks") if _knows(vocabulary, load_task(name)))


def _knows(vocabulary: Vocabulary, task: TaskConfig) -> bool:
    tokens = {task.token} | {token for segment in task.segments for token in (segment.start, segment.end)}
    modalities = {segment.modality for segment in task.segments} - {CONTINUOUS}
    return tokens <= set(vocabulary.specials) and modalities <= {name for name, *_ in vocabulary.ranges}


def run_config(description: Description, out: Path) -> RunConfig:
    """The run that a checkpoint's readers expect: this model, and the paper's fine-tuning to go on from it (paper, section Optimisation).

    The released code's loss counts every token, under prefix-LM the target alone.
    """
    model, tasks = description.model, known_tasks(description.vocabulary)
    if not tasks:
        raise UserError("the vocabulary has the tokens of no task", seen=description.vocabulary.name, allowed=", ".join(shipped("tasks")))
    data = {
        "shards": "shards",
        "tasks": tasks,
        "frames_per_row": min(8000, model.max_positions),
        "rows_per_micro_batch": 1,
        "loss_on": "target" if model.prefix_lm else "all",
    }
    train = {"output_dir": f"{out}-tuned", "steps": 50_000}
    return RunConfig.model_validate({"model": model, "data": data, "optim": {"lr": 1e-5, "warmup_steps": 1000}, "train": train})
