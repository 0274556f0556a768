"""The result of `uniaudio codec evaluate` as CSV files and one Markdown page."""

import csv
import io
from pathlib import Path

from uniaudio.atomic import publish_bytes
from uniaudio.tokenize_farm.codec.evaluate import COLUMNS


def write_report(out: Path, quality: list[dict[str, object]], codes: list[dict[str, float]]) -> str:
    """Writes quality.csv, codes.csv and README.md; returns the page."""
    levels = [{"level": index + 1, **row} for index, row in enumerate(codes)]
    publish_bytes(out / "quality.csv", _csv(list(COLUMNS), quality))
    publish_bytes(out / "codes.csv", _csv(["level", "used", "entropy_bits"], levels))
    page = "# Quality on held-out recordings\n\nMeans over clips; PESQ-wb, STOI, SI-SDR (dB): higher is better; mel, stft: lower.\n\n"
    for kind in sorted({str(row["kind"]) for row in quality}):
        rows = [row for row in quality if row["kind"] == kind]
        columns = [name for name in COLUMNS if name != "kind" and any(row[name] != "" for row in rows)]
        page += f"## {kind}\n" + _table(columns, rows) + "\n"
    page += "## Codes, all kinds together\n" + _table(["level", "used", "entropy_bits"], levels)
    publish_bytes(out / "README.md", page.encode())
    return page


def _csv(columns: list[str], rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _table(columns: list[str], rows: list[dict]) -> str:
    lines = [columns, ["---"] * len(columns), *[[str(row[name]) for name in columns] for row in rows]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
