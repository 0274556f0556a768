"""The licence of each file of a Debian package, from its machine-readable copyright file (DEP-5).

Owns the parsing of `Files:` and `License:` stanzas; the last stanza whose pattern matches a path wins, as the format says.
"""

from fnmatch import fnmatchcase
from pathlib import Path

from uniaudio.errors import UserError


class Licences:
    """Licences by path in the source tree of one package."""

    def __init__(self, copyright_file: Path) -> None:
        self._file = copyright_file
        self._rules: list[tuple[str, str]] = []
        for stanza in copyright_file.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            fields = _fields(stanza)
            if "files" in fields and "license" in fields:
                licence = fields["license"].splitlines()[0].strip()
                self._rules += [(pattern, licence) for pattern in fields["files"].split()]

    def of(self, path: str) -> str:
        """The licence of `path`; UserError where no stanza names it, since nothing without a known licence may enter the corpus."""
        for pattern, licence in reversed(self._rules):
            if licence and fnmatchcase(path, pattern):
                return licence
        raise UserError(f"{self._file} gives no licence", seen=path, remedy="leave this file out of the corpus")


def _fields(stanza: str) -> dict[str, str]:
    """`Name: value` lines with their continuation lines; names in lower case."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in (" ", "\t"):
            fields[name] = fields.get(name, "") + "\n" + line.strip()
        elif ":" in line:
            name, value = line.split(":", 1)
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields
