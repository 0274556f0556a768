"""Three questions of the paper at a size of one's own, by the commands that a user would type; each prints a table of held-out losses.

few-shot    a model of old tasks learns a new one from 10, 100 and 1000 clips: fine-tuned, by adapters, and from nothing.
forgetting  what the old tasks lose meanwhile: without them, with them by hours, with them at data.mix.alpha 0.05, by adapters alone.
joint       one model of all tasks against one a task: with as many steps in all, and with as many steps each.

A run that is finished is not made again, so the base is shared by the first two. Tasks that a run does not train have the weight 0 in its
mix: their held-out clips are measured all the same. Losses are nats a code.

    python tests/experiments.py few-shot forgetting joint data.workers=4 --shards shards --out work/experiments --run all_tasks_30m \
        --old tts vc sound music --new se --steps 3000 --tune-steps 500
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig
from uniaudio.configs.tasks import load_task
from uniaudio.tokenize_farm.schema import KINDS, TokenizedClip
from uniaudio.tokenize_farm.shard_reader import ShardReader
from uniaudio.tokenize_farm.shard_writer import write_shard

LORA = ["finetune.lora.rank=8", "finetune.lora.alpha=16"]
Losses = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    shards: Path
    out: Path
    run: str
    old: tuple[str, ...]
    new: str
    steps: int
    tune_steps: int
    rows: int
    overrides: tuple[str, ...]

    def train(self, name: str, trained: Sequence[str], steps: int, *overrides: str, few: Path | None = None) -> Losses:
        """Held-out loss of every task after a run that trains some of them, on the clips of `few` alone where given; SystemExit where it
        failed."""
        tasks, folder = (*self.old, self.new), self.out / name
        weights = ", ".join(f"{task}: 0" for task in tasks if task not in trained)
        clips = [f"data.shards=[{few}, {self.shards}]", f"data.mix.datasets={{{self.shards.name}: 0}}"] if few else []
        words = [
            *self.overrides, f"data.shards={self.shards}", f"data.tasks=[{', '.join(tasks)}]", f"train.steps={steps}",
            *([f"data.mix.weights={{{weights}}}"] if weights else []), *clips, f"train.output_dir={folder}", *overrides,
        ]  # fmt: skip
        if not (folder / "finished.json").exists():
            code = subprocess.run([sys.executable, "-m", "uniaudio", "train", self.run, *words], check=False).returncode
            if code:
                sys.exit(f"uniaudio train {self.run} {' '.join(words)}: exit code {code}")
        return self._held_out(folder)

    def _held_out(self, folder: Path) -> Losses:
        """Of as many rows of each task: `TASK`, `unigram TASK`."""
        kept = folder / "held_out.json"
        if not kept.exists():
            words = ["evaluate", str(folder), "--clips", "0", "--rows", str(self.rows), "--shards", str(self.shards), "--json"]
            made = subprocess.run([sys.executable, "-m", "uniaudio", *words], check=True, stdout=subprocess.PIPE, text=True).stdout
            kept.write_text(made)
        found = json.loads(kept.read_text())["tasks"]
        losses = {task: found[task]["loss"]["mean"] for task in found}
        return losses | {f"unigram {task}": found[task]["unigram"] for task in found}

    def tune(self, name: str, trained: Sequence[str], *overrides: str, few: Path | None = None) -> Losses:
        """From the base of the old tasks."""
        return self.train(name, trained, self.tune_steps, f"train.init_from={self.out / 'base'}", *overrides, few=few)

    def base(self) -> Losses:
        """The model that knows the old tasks alone."""
        return self.train("base", self.old, self.steps)


def subset(shards: Path, out: Path, task: str, count: int) -> Path:
    """A folder with one shard of `count` training clips that serve the task, drawn over all shards."""
    if (out / "train-000000.json").exists():
        return out
    wanted, kinds = load_task(task).required_views, {KINDS.index(kind) for kind in load_task(task).kinds}
    found: list[tuple[Path, int]] = []
    for tar in sorted(shards.glob("train-*.tar")):
        with ShardReader(tar) as reader:
            views = reader.index.views.tolist()
            if set(wanted) <= set(views):
                columns = [views.index(view) for view in wanted]
                serves = (reader.index.offsets[:, columns] >= 0).all(axis=1) & np.isin(reader.index.kinds, list(kinds))
                found += [(tar, clip) for clip in np.flatnonzero(serves).tolist()]
    if len(found) < count:
        sys.exit(f"{shards}: {len(found)} clips serve {task}, {count} are asked for")
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    clips, tokenizers = [], {}
    for tar, clip in sorted(found[number] for number in chosen.tolist()):
        tokenizers |= json.loads(tar.with_suffix(".json").read_text())["tokenizers"]
        with ShardReader(tar) as reader:
            views = {view: reader.view(clip, view) for view in wanted}
            clips.append(TokenizedClip(f"{tar.stem}-{reader.index.keys[clip]}", reader.meta(clip), views))
    write_shard(out, "train", 0, clips, tokenizers=tokenizers)
    return out


def few_shot(setting: Setting, counts: Sequence[int]) -> list[list[str]]:
    """Rows: clips, how, loss of the new task, mean loss of the old ones."""
    rows = [["clips of the new task", "how", setting.new, "old tasks, mean"]]
    losses = setting.base()
    rows.append(["0", "base", *_new_and_old(setting, losses)])
    for count in counts:
        few = subset(setting.shards, setting.out / f"clips-{count}", setting.new, count)
        tuned = setting.tune(f"few-{count}", [setting.new], few=few)
        adapted = setting.tune(f"few-{count}-adapters", [setting.new], *LORA, few=few)
        scratch = setting.train(f"few-{count}-scratch", [setting.new], setting.tune_steps, few=few)
        found = {"fine-tuned": tuned, "adapters": adapted, "from nothing": scratch}
        rows += [[str(count), how, *_new_and_old(setting, of)] for how, of in found.items()]
    rows.append(["-", "unigram entropy", *_new_and_old(setting, losses, "unigram ")])
    return rows


def _new_and_old(setting: Setting, losses: Losses, prefix: str = "") -> list[str]:
    old = sum(losses[prefix + task] for task in setting.old) / len(setting.old)
    return [f"{losses[prefix + setting.new]:.4f}", f"{old:.4f}"]


def forgetting(setting: Setting, counts: Sequence[int]) -> list[list[str]]:
    """Rows: how the base was fine-tuned, loss of each task."""
    tasks = (*setting.old, setting.new)
    found = {
        "base, before": setting.base(),
        "new task alone": setting.tune("tune-new", [setting.new]),
        "new task alone, adapters": setting.tune("tune-adapters", [setting.new], *LORA),
        "all tasks by hours": setting.tune("tune-hours", tasks, "data.mix.alpha=1"),
        "all tasks, alpha 0.05": setting.tune("tune-alpha", tasks, "data.mix.alpha=0.05"),
    }
    rows = [[how, *(f"{losses[task]:.4f}" for task in tasks)] for how, losses in found.items()]
    entropy = [f"{found['base, before'][f'unigram {task}']:.4f}" for task in tasks]
    return [["fine-tuned on", *tasks], *rows, ["unigram entropy", *entropy]]


def joint(setting: Setting, counts: Sequence[int]) -> list[list[str]]:
    """Rows: one model of all tasks, and one a task with a share of its steps, and with as many."""
    tasks = (*setting.old, setting.new)
    together = setting.train("joint", tasks, setting.steps, "data.mix.alpha=0")
    share = setting.steps // len(tasks)
    single = {steps: [setting.train(f"single-{task}-{steps}", [task], steps)[task] for task in tasks] for steps in (share, setting.steps)}
    rows = [[f"all tasks, {setting.steps} steps", *(f"{together[task]:.4f}" for task in tasks)]]
    rows += [[f"one task, {steps} steps", *(f"{loss:.4f}" for loss in losses)] for steps, losses in single.items()]
    return [["trained on", *tasks], *rows, ["unigram entropy", *(f"{together[f'unigram {task}']:.4f}" for task in tasks)]]


EXPERIMENTS = {"few-shot": few_shot, "forgetting": forgetting, "joint": joint}


def main() -> int:
    """Runs what is asked for; each table is printed and kept in OUT/NAME.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "experiments", nargs="+", metavar="few-shot | forgetting | joint | OVERRIDE", help="an override holds a `=`; before all options"
    )
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", default="demo_cpu", help="config of every run")
    parser.add_argument("--old", nargs="+", default=["tts", "sound"], help="tasks of the base")
    parser.add_argument("--new", default="se", help="the task that is learned afterwards")
    parser.add_argument("--steps", type=int, default=400, help="of the base, and of the joint model")
    parser.add_argument("--tune-steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=32, help="held-out rows of each task that are measured")
    parser.add_argument("--clips", type=int, nargs="+", default=[10, 100, 1000])
    arguments = parser.parse_intermixed_args()
    overrides = [word for word in arguments.experiments if "=" in word]
    names = [word for word in arguments.experiments if "=" not in word]
    if strange := [name for name in names if name not in EXPERIMENTS]:
        parser.error(f"no such experiment: {', '.join(strange)}; there are {', '.join(EXPERIMENTS)}")
    whole = ["parallel.tensor_parallel_size=1", *overrides]  # adapters are made of whole layers
    load_config(RunConfig, arguments.run, folder="runs", overrides=whole)  # faults before any work
    setting = Setting(
        arguments.shards, arguments.out, arguments.run, tuple(arguments.old), arguments.new, arguments.steps, arguments.tune_steps,
        arguments.rows,        tuple(whole),
    )  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        head, *body = EXPERIMENTS[name](setting, arguments.clips)
        text = "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))
        (arguments.out / f"{name}.md").write_text(text)
        sys.stdout.write(f"{name}\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
