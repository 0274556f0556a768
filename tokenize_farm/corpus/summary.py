"""Clips and minutes of a manifest by kind, language and split: as a table for a person, as plain data for a script."""

from collections.abc import Iterable

from rich.table import Table

from uniaudio.tokenize_farm.manifest import ManifestRow

Group = dict[str, object]


def summarize(rows: Iterable[ManifestRow]) -> list[Group]:
    """One dict a group: kind, language, split, clips, minutes, speakers, licences; sorted."""
    groups: dict[tuple[str, str, str], list[ManifestRow]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.language or "", row.split or ""), []).append(row)
    return [
        {
            "kind": kind,
            "language": language,
            "split": split,
            "clips": len(members),
            "minutes": round(sum(row.duration or 0.0 for row in members) / 60, 2),
            "speakers": len({row.speaker for row in members if row.speaker}),
            "licences": sorted({row.licence for row in members if row.licence}),
        }
        for (kind, language, split), members in sorted(groups.items())
    ]


def summary_table(groups: Iterable[Group], title: str) -> Table:
    """The groups as a rich table."""
    table = Table(title=title)
    for column in ("kind", "language", "split", "clips", "minutes", "speakers", "licences"):
        table.add_column(column, justify="right" if column in ("clips", "minutes", "speakers") else "left")
    for group in groups:
        licences = group["licences"]
        assert isinstance(licences, list)
        table.add_row(*(str(group[name]) for name in ("kind", "language", "split", "clips", "minutes", "speakers")), ", ".join(licences))
    return table
