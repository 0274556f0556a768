"""The result of `uniaudio codec evaluate`: CSV files, one Markdown page, and a plot of quality over bit rate."""

import csv
import io
from pathlib import Path

from uniaudio.atomic import publish_bytes, publish_file
from uniaudio.tokenize_farm.codec.evaluate import COLUMNS, RECORDING
from uniaudio.tokenize_farm.measures.packages import need

LEGEND = """Means over clips. PESQ-wb, STOI, DNSMOS (overall), SI-SDR (dB): higher is better; mel, stft: lower. cer: character errors of
Whisper base against the words that were read, all clips together. kbps of Opus: its packets, without the Ogg pages."""
PLOTTED = {"pesq_wb": "PESQ-wb", "stoi": "STOI", "mel": "mel distance (lower is better)"}


def write_report(out: Path, quality: list[dict[str, object]], codes: list[dict[str, float]]) -> str:
    """Writes quality.csv, codes.csv, README.md and quality.png; returns the page."""
    levels: list[dict[str, object]] = [{"level": index + 1, **row} for index, row in enumerate(codes)]
    publish_bytes(out / "quality.csv", _csv(list(COLUMNS), quality))
    publish_bytes(out / "codes.csv", _csv(["level", "used", "entropy_bits"], levels))
    page = f"# Quality on held-out recordings\n\n{LEGEND}\n\n"
    for kind in sorted({str(row["kind"]) for row in quality}):
        rows = [row for row in quality if row["kind"] == kind]
        columns = [name for name in COLUMNS if name != "kind" and any(row[name] != "" for row in rows)]
        page += f"## {kind}\n" + _table(columns, rows) + "\n"
    page += "## Codes, all kinds together\n" + _table(["level", "used", "entropy_bits"], levels)
    publish_bytes(out / "README.md", page.encode())
    _plot(out / "quality.png", quality)
    return page


def _plot(path: Path, quality: list[dict[str, object]]) -> None:
    """One row of axes a kind, one column a measure: ours as a line over kbps, every other system as a point."""
    need("matplotlib", needed_for="the plot of codec evaluate")
    from matplotlib.figure import Figure

    coded = [row for row in quality if row["system"] != RECORDING and row["kbps"] != ""]
    kinds = sorted({str(row["kind"]) for row in coded})
    panels = [(kind, key) for kind in kinds for key in PLOTTED if any(r["kind"] == kind and r[key] != "" for r in coded)]
    if not panels:
        return
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, (kind, key) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        rows = [row for row in coded if row["kind"] == kind and row[key] != ""]
        ours = [row for row in rows if str(row["system"]).startswith("ours")]
        axes.plot([row["kbps"] for row in ours], [row[key] for row in ours], "o-", label="ours")
        for row in rows:
            if row not in ours:
                axes.plot([row["kbps"]], [row[key]], "s", label=str(row["system"]))
        axes.set(title=kind, xlabel="kbps", ylabel=PLOTTED[key], xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with publish_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _csv(columns: list[str], rows: list[dict[str, object]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _table(columns: list[str], rows: list[dict[str, object]]) -> str:
    lines = [columns, ["---"] * len(columns), *[[str(row[name]) for name in columns] for row in rows]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
