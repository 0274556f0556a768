"""Many requests in a file: one JSON object a line, with the inputs of `uniaudio generate` under their long names.

    {"id": "greeting", "task": "tts", "text": "good morning", "prompt": "speaker.wav"}

Paths are relative to the file's folder. A row's seed is a function of its id, so its clip does not depend on the rows around it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from uniaudio.errors import UserError
from uniaudio.pretrain.generate.api import Options
from uniaudio.pretrain.generate.inputs import Inputs
from uniaudio.pretrain.sampling import named_seed

WORDS = ("text", "phones", "instruction", "language", "replace")
PATHS = ("source", "prompt", "alignment", "midi")
assert {field.name for field in fields(Inputs)} == {*WORDS, *PATHS}
_ID = re.compile(r"^[A-Za-z0-9_.\-]{1,100}$")


@dataclass(frozen=True)
class Row:
    """A request of a manifest."""

    id: str
    task: str
    inputs: Inputs
    options: Options


def read_requests(path: Path, *, task: str | None, inputs: Inputs, options: Options, uses: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """The rows in order; what a row does not say is taken from `task`, and from `inputs` as far as the row's task uses it.

    uses: task -> the inputs that it takes (`Generator.uses`); a row of another task is told of when its turn comes.

    Raises:
        UserError: a file that cannot be read, or a line that is no request (file and line number are named).
    """
    seen: set[str] = set()
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = _row(f"{path}:{number}", line, path.absolute().parent, task, inputs, options, uses)
                    if row.id in seen:
                        raise UserError(f"{path}:{number}: id was used before", seen=row.id, remedy="give every row an id of its own")
                    seen.add(row.id)
                    yield row
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("the manifest cannot be read", seen=error, remedy="a file with one JSON object a line, in UTF-8") from error


def _row(place: str, line: str, folder: Path, task: str | None, inputs: Inputs, options: Options, uses: Mapping[str, Sequence[str]]) -> Row:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not JSON", seen=error, remedy="one JSON object a line") from error
    allowed = ("id", "task", *WORDS, *PATHS)
    if not isinstance(data, dict) or not all(key in allowed and isinstance(value, str) for key, value in data.items()):
        wrong = [key for key in data if key not in allowed or not isinstance(data[key], str)] if isinstance(data, dict) else line[:40]
        raise UserError(f"{place}: not a request", seen=wrong, allowed=", ".join(allowed) + " with words")
    name, row_task = data.get("id", f"row-{place.rpartition(':')[2]}"), data.get("task", task)
    if not _ID.match(name):
        raise UserError(f"{place}: id names the file to write", seen=name, allowed="letters, digits, _ - and .")
    if row_task is None:
        raise UserError(f"{place}: no task", remedy='"task": "tts" in the row, or --task')
    given: dict[str, str | Path] = {
        key: folder / value if key in PATHS else value for key, value in data.items() if key in (*WORDS, *PATHS)
    }
    shared = {key: getattr(inputs, key) for key in uses.get(row_task, ())}
    return Row(name, row_task, Inputs(**shared | given), replace(options, seed=named_seed(options.seed, name)))
