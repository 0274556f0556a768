"""What a job reads, looked at before it queues: shards against model and tasks, an old checkpoint against the run, a manifest's first rows.

Reads sidecars, indexes and manifests as the files that they are; places that this machine cannot see (URLs) are left to the nodes.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.run import RunConfig
from uniaudio.configs.tasks import CONTINUOUS, SegmentConfig, load_tasks
from uniaudio.configs.vocabulary import load_table
from uniaudio.errors import UserError

_SHARDS_LOOKED_AT = 16  # evenly over the folder: a farm's shards are all of one make
_ROWS_LOOKED_AT = 100
_SHAPE = ("width", "num_heads", "ffn_width", "global_layers", "local_layers", "max_positions", "text_width", "embedding", "link")
_ELSEWHERE = "check_paths: false in the cluster's YAML where this machine does not see the nodes' files"


def check_shards(run: RunConfig) -> None:
    """Published training shards that hold what the tasks and the model want."""
    local = [Path(place) for place in run.data.folders if "://" not in place]
    columns = _columns([sidecar for folder in local for sidecar in _sidecars(folder)])
    for task in load_tasks(run.data.tasks):
        for segment in task.segments:
            _check_segment(run, task.name, segment, columns, all_seen=len(local) == len(run.data.folders))


def _sidecars(folder: Path) -> list[Path]:
    """Of some shards of a dataset, evenly over it."""
    if not folder.is_dir():
        raise UserError("data.shards: no such folder", seen=folder, remedy=f"make them with `uniaudio tokenize`, or {_ELSEWHERE}")
    sidecars = sorted(folder.glob("train-*.json"))
    if not sidecars:
        raise UserError(
            "data.shards holds no published training shard (train-*.json)", seen=folder, remedy="run `uniaudio tokenize` to its end"
        )
    return sidecars[:: max(1, len(sidecars) // _SHARDS_LOOKED_AT)]


def _columns(sidecars: list[Path]) -> dict[str, tuple[int, int]]:
    """View -> fewest and most columns of its arrays (audio: levels, text: width) over some shards."""
    found: dict[str, tuple[int, int]] = {}
    for sidecar in sidecars:
        path = sidecar.with_suffix(".index.npz")
        try:
            with np.load(path, allow_pickle=False) as index:
                views, shapes = index["views"].tolist(), index["shapes"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError("a shard's index cannot be read", seen=path, remedy="uniaudio shards verify, then tokenize again") from error
        for number, view in enumerate(views):
            widths = shapes[:, number, 1][shapes[:, number, 0] > 0]
            if len(widths):
                low, high = found.get(view, (int(widths.min()), 0))
                found[view] = min(low, int(widths.min())), max(high, int(widths.max()))
    return found


def _check_segment(run: RunConfig, task: str, segment: SegmentConfig, columns: dict[str, tuple[int, int]], *, all_seen: bool) -> None:
    if segment.view not in columns:
        if not all_seen:
            return
        raise UserError(
            f"data.tasks: no clip looked at has the view {segment.view} that the task {task} needs",
            seen=", ".join(sorted(columns)) or "no view",
            remedy=f"a farm with {segment.view.split('.')[0]} among its tokenizers, or leave {task} out",
        )
    fewest, most = columns[segment.view]
    if segment.modality == "audio" and fewest < run.model.num_codebooks:
        raise UserError(
            f"model.num_codebooks exceeds the levels of the shards' view {segment.view}",
            seen=run.model.num_codebooks,
            allowed=f"up to {fewest}",
            remedy="fewer codebooks, or tokenize with more levels",
        )
    if segment.modality == CONTINUOUS and not fewest == most == run.model.text_width:
        raise UserError(
            f"model.text_width is not the width of the shards' view {segment.view}",
            seen=run.model.text_width,
            allowed=fewest,
            remedy=f"model.text_width={fewest}, or another text tokenizer",
        )


def check_checkpoint(run: RunConfig) -> None:
    """Where the run would resume: the newest checkpoint numbers tokens as this run does, and is of the same model."""
    if not run.train.resume:
        return
    manifests = sorted(Path(run.train.output_dir, "checkpoints").glob("step-*[0-9]/manifest.json"))
    if not manifests:
        return
    try:
        manifest = json.loads(manifests[-1].read_text(encoding="utf-8"))
        table, model = manifest["vocabulary"]["table"], manifest["config"]["model"]
    except (ValueError, KeyError, TypeError):
        return  # damaged: the training itself takes the one before
    remedy = "another train.output_dir, or the config that the checkpoint was made with"
    theirs, ours = _numbering(table), _numbering(_table_of(run))
    if differing := [key for key in ours | theirs if ours.get(key) != theirs.get(key)]:
        raise UserError(
            "model.vocabulary or model.num_codebooks numbers tokens differently than the checkpoint in train.output_dir",
            seen=", ".join(f"{key} {ours.get(key, '-')}" for key in differing[:3]),
            allowed=", ".join(f"{key} {theirs.get(key, '-')}" for key in differing[:3]),
            remedy=remedy,
        )
    mine = run.model.model_dump(mode="json")
    shape = [key for key in _SHAPE if model.get(key) != mine[key]]
    if shape:
        raise UserError(
            f"the checkpoint in train.output_dir ({manifests[-1].parent.name}) is of another model",
            seen=", ".join(f"model.{key} {mine[key]}" for key in shape),
            allowed=", ".join(f"model.{key} {model.get(key)}" for key in shape),
            remedy=remedy,
        )


def _table_of(run: RunConfig) -> dict[str, Any]:
    table = load_table(run.model.vocabulary)
    return {
        "reserved": table.reserved,
        "specials": list(table.specials),
        "mask": table.audio_mask,
        "ranges": [list(entry) for entry in table.ranges(run.model.num_codebooks)],
    }


def _numbering(table: dict[str, Any]) -> dict[str, Any]:
    """What decides every id, flat: modality -> (first id, entries, levels), special tokens by their ids, and the mask."""
    ranges = {name: f"from {start}: {entries} x {levels}" for name, start, entries, levels in table["ranges"]}
    return ranges | {f"id {number}": name for number, name in enumerate(table["specials"])} | {"mask": table["mask"]}


def check_manifest(farm: FarmConfig) -> None:
    """A manifest that is there and whose first rows are rows."""
    if "://" in farm.manifest:
        return
    path = Path(farm.manifest)
    if not path.is_file():
        raise UserError("manifest: no such file", seen=path, remedy=f"`uniaudio corpus manifest` writes one, or {_ELSEWHERE}")
    if path.suffix != ".jsonl":
        return  # other forms are the farm's to read
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(islice(lines, _ROWS_LOOKED_AT), start=1):
            try:
                row = json.loads(line) if line.strip() else {"audio_filepath": "-"}
            except ValueError:
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("audio_filepath"), str):
                raise UserError(
                    f"manifest: line {number} is no row of a manifest",
                    seen=line.strip()[:80],
                    allowed='{"audio_filepath": "a.wav", "text": ...}, one a line',
                    remedy="`uniaudio corpus manifest` writes one",
                )
