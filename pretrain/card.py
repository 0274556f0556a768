"""The model card of an export folder: what the model is, its figures, how to use it. Markdown; knows no files but `metrics.jsonl`."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from uniaudio.configs.run import RunConfig
from uniaudio.pretrain.data.vocabulary import Vocabulary

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Card:
    """facts: rows of the first table. figures: rows (measure, value, unigram of the same codes); empty where none were measured."""

    title: str
    facts: Rows
    figures: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self, run: RunConfig, *, generates: bool) -> str:
        """The card; `generates`: the tokenizers are known, so that `uniaudio generate` works."""
        facts = "\n".join(f"| {name} | {value} |" for name, value in self.facts)
        figures = "None were measured."
        if self.figures:
            rows = "\n".join(f"| {' | '.join(row)} |" for row in self.figures)
            head = "Nats a code; beside it what the best model pays that knows only how often each code occurs."
            figures = f"{head}\n\n| | model | unigram |\n|---|---|---|\n{rows}"
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"# {self.title}\n\n| | |\n|---|---|\n{facts}\n{notes}\n## Figures\n\n{figures}\n\n{_usage(run, generates)}"


def _usage(run: RunConfig, generates: bool) -> str:
    tasks = run.data.tasks
    task = "tts" if "tts" in tasks else tasks[0]
    generate = (
        f"uniaudio generate --checkpoint FOLDER --task {task} --out out.wav     # with the inputs of the task: uniaudio generate --help\n"
    )
    return f"""## Use

```python
from uniaudio.pretrain import load_model

model = load_model("FOLDER")     # this folder
logits_BTQV = model(codes_BTQ)   # vocabulary ids, frames from <start> on; logits at (t, q) predict codes_BTQ[:, t, q]
```

```
{generate if generates else ""}uniaudio train FOLDER/config.yaml train.init_from=FOLDER data.shards=shards train.output_dir=runs/tuned
```

`vocabulary.yaml` is the table of token ids, `manifest.json` the config, the parameters' shapes and the sha256 of the weights.
"""


def model_rows(run: RunConfig, vocabulary: Vocabulary, shapes: dict[str, tuple[int, ...]]) -> Rows:
    """What the architecture is, in the paper's words."""
    model = run.model
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    audio = vocabulary.audio_level(0)
    return [
        ("parameters", f"{parameters / 1e6:,.1f} M"),
        ("global Transformer", f"{model.global_layers} layers, width {model.width}, {model.num_heads} heads, FFN {model.ffn_width}"),
        ("local Transformer", f"{model.local_layers} layers, width {model.width}, {model.local_heads} heads, FFN {model.ffn_width}"),
        ("frames", f"{model.num_codebooks} codes of {len(audio)} each; up to {model.max_positions} frames of context"),
        (
            "form",
            f"embedding {model.embedding}, link {model.link}, positions {model.positions}, prefix-LM {'on' if model.prefix_lm else 'off'}",
        ),
        ("vocabulary", f"{vocabulary.size} ids, fingerprint {vocabulary.fingerprint[:12]}"),
    ]


def loss_figures(metrics: Path, step: int) -> list[tuple[str, str, str]]:
    """Rows of the newest held-out losses up to `step` in a run's `metrics.jsonl`, and of the training loss; empty without the file."""
    if not metrics.is_file():
        return []
    newest: dict[str, tuple[int, float]] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a run that is being written, or was killed while it wrote
        if record["step"] <= step:
            newest |= {key: (record["step"], value) for key, value in record.items() if "loss" in key or "unigram" in key}
    rows = []
    for key, (at, value) in sorted(newest.items(), key=lambda item: (not item[0].startswith("valid/"), item[0])):
        if "loss" not in key:
            continue
        unigram = newest.get(key.replace("loss", "unigram"))
        held_out = key.startswith("valid/")
        what = f"{'held-out' if held_out else 'training'} {key.removeprefix('valid/').replace('/', ' ')}, step {at}"
        rows.append((what, f"{value:.4f}", f"{unigram[1]:.4f}" if unigram else "-"))
    return rows
