"""Shards made visible: tables, the picture of a clip's views, its sound decoded from its codes."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from uniaudio.errors import MissingDependency, UserError
from uniaudio.tokenize_farm.audio import save_wav
from uniaudio.tokenize_farm.index import list_shards, read_index
from uniaudio.tokenize_farm.output import open_output
from uniaudio.tokenize_farm.schema import KINDS, TokenizedClip, base_view
from uniaudio.tokenize_farm.shard_reader import ShardReader
from uniaudio.tokenize_farm.summary import read_farm_file
from uniaudio.tokenize_farm.tokenizers.protocol import AudioTokenizer, make_tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE = 130  # characters of a line of phones in a picture


def totals_table(totals: dict) -> Table:
    """Counts over a folder of shards (see `summary.total`)."""
    table = Table("what", "clips or rows", "minutes", title=f"{totals['shards']} shards, {totals['tar_bytes'] / 2**20:.1f} MiB")
    for kind, clips in totals["clips_by_kind"].items():
        table.add_row(kind, str(clips), f"{totals['seconds_by_kind'][kind] / 60:.1f}")
    for name in ("clips_by_split", "rows_by_view", "dropped_by_reason"):
        for key, count in totals[name].items():
            table.add_row(f"{name.split('_by_')[1]} {key}", str(count), "")
    return table


def first_keys(directory: Path, wanted: Mapping[str, int]) -> dict[str, list[str]]:
    """Kind -> keys of its first clips, in the order of the shards, `wanted[kind]` of them; reads no more indexes than that takes."""
    found: dict[str, list[str]] = {kind: [] for kind in wanted}
    for paths in list_shards(directory):
        lacking = {kind for kind, keys in found.items() if len(keys) < wanted[kind]}
        if not lacking:
            break
        if lacking & paths.read_sidecar()["clips_by_kind"].keys():
            index = read_index(paths.index)
            for key, number in zip(index.keys.tolist(), index.kinds.tolist()):
                if len(found[KINDS[number]]) < wanted[KINDS[number]]:
                    found[KINDS[number]].append(key)
    return found


def find_clip(directory: Path, key: str) -> TokenizedClip:
    """The clip of that key or manifest id, with every view.

    Raises:
        UserError: no shard of the folder has it.
    """
    for paths in list_shards(directory):
        with ShardReader(paths.tar) as reader:
            for i, name in enumerate(reader.index.keys.tolist()):
                if name == key or reader.meta(i).get("id") == key:
                    views = {view: reader.view(i, view) for view in reader.index.views.tolist() if reader.index.has(i, view)}
                    return TokenizedClip(name, reader.meta(i), views)
    raise UserError("no such clip in these shards", seen=key, remedy=f"a manifest id, or a key; some: uniaudio shards show {directory}")


def clip_as_json(clip: TokenizedClip) -> dict:
    """Key, meta, and the shapes of the views."""
    return {"key": clip.key, "meta": clip.meta, "views": {view: list(array.shape) for view, array in clip.views.items()}}


def clip_table(clip: TokenizedClip) -> Table:
    """What is known of a clip, and the first values of each view."""
    table = Table("what", "value", title=clip.key)
    for name, value in clip.meta.items():
        table.add_row(name, str(value))
    for view, array in clip.views.items():
        values = " ".join(f"{value:.6g}" for value in array.reshape(-1)[:12].tolist())
        table.add_row(f"view {view}", f"{array.dtype} {array.shape}: {values} ...")
    return table


def write_clip(clip: TokenizedClip, directory: Path, out: Path) -> list[Path]:
    """Writes KEY.png (one panel a view) and, where the clip has codes, KEY.wav; returns their paths.

    Raises:
        UserError: the shards' codec is not the one installed here.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{clip.key}.png"]
    _picture(clip, paths[0])
    if "audio" in clip.views:
        paths.append(out / f"{clip.key}.wav")
        save_wav(paths[1], decode(clip.views["audio"], directory))
    return paths


def decode(codes_TQ: np.ndarray, directory: Path) -> np.ndarray:
    """Codes of a folder's shards -> samples at 16 kHz by the codec that `farm.json` names.

    Raises:
        UserError: no `farm.json`, or its codec has other weights by now.
    """
    farm = read_farm_file(open_output(str(directory)))
    made_by, spec = farm.get("tokenizers", {}).get("audio"), farm.get("tokenizer_configs", {}).get("audio")
    if not made_by or not spec:
        raise UserError("no farm.json beside the shards says which codec made them", seen=directory, remedy="run the farm again")
    codec = make_tokenizer(spec["name"], spec["options"])
    if made_by != f"{codec.name}/{codec.version}" or not isinstance(codec, AudioTokenizer):
        allowed = f"{codec.name}/{codec.version}"
        raise UserError("these codes are of another codec than the one installed", seen=made_by, allowed=allowed)
    return codec.decode(codes_TQ)


def _picture(clip: TokenizedClip, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", needed_for="the picture of a clip", extra="train") from error
    figure = Figure(figsize=(12, 1.8 * max(1, len(clip.views))), layout="constrained")
    axes = figure.subplots(max(1, len(clip.views)), 1, squeeze=False)[:, 0]
    for axis, (view, array) in zip(axes, clip.views.items()):
        _panel(axis, view, array)
    axes[0].set_title(f"{clip.key}  {clip.meta.get('text') or clip.meta.get('caption') or ''}"[:120])
    figure.savefig(path, format="png", metadata={"Software": None})


def _panel(axis: "Axes", view: str, array: np.ndarray) -> None:
    axis.set_ylabel(view)
    if base_view(view) in ("audio", "text"):
        axis.imshow(array.astype(np.float32).T, aspect="auto", interpolation="nearest", origin="lower")
    elif base_view(view) == "phone":
        from uniaudio.tokenize_farm.tokenizers import phones, sing_phones

        names = list((sing_phones if view == "phone.singing" else phones).inventory())
        _phones(axis, [names[i] for i in array[:, 0].tolist()], array[:, 1])
    else:
        axis.plot(array, drawstyle="steps-mid")
        axis.set_xlim(0, len(array))


def _phones(axis: "Axes", names: list[str], frames: np.ndarray) -> None:
    """Phones in a row where nothing is known of their times, else each over the frames that it lasts."""
    axis.set(xticks=[], yticks=[])
    if not frames.any():
        axis.text(0.01, 0.5, fill(" ".join(names), _LINE), va="center", transform=axis.transAxes)
        return
    ends = np.cumsum(frames)
    axis.set_xlim(0, int(ends[-1]))
    axis.vlines(ends, 0, 1, linewidth=0.5, color="gray")
    for name, end, lasts in zip(names, ends.tolist(), frames.tolist()):
        if lasts:
            axis.text(end - lasts / 2, 0.5, name, ha="center", va="center", fontsize=8)
