"""Wrong jobs never queue: each of refused_jobs.py ends in one line with the key, the value and what to do, and nothing is written.

docs/refused_jobs.md is that list with what is said; `UNIAUDIO_UPDATE_GOLDEN=1 pytest` writes it anew.
"""

import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from refused_jobs import CLUSTERS, JOBS, Case, make_files

from uniaudio.cluster.cli import submit
from uniaudio.errors import UserError

DOCUMENT = Path(__file__).parents[3] / "docs" / "refused_jobs.md"
HEAD = """\
# Jobs that are refused

What `uniaudio submit` says about each of {count} wrong jobs, before anything queues. tests/unit/cluster/test_refused_jobs.py runs them all
and writes this page; the cases are in refused_jobs.py beside it.

| what is wrong | what is said |
|---|---|
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("refused")
    make_files(made)
    return made


def refusal(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `uniaudio submit` says, where no scheduler could be called."""
    _, sections, words = case
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/nonexistent")
    (folder / "cluster.yaml").write_text(yaml.safe_dump({"job_dir": "jobs", **sections}))
    with pytest.raises(UserError) as raised:
        CliRunner().invoke(submit, [*words, "--cluster", "cluster.yaml"], catch_exceptions=False)
    assert not (folder / "jobs").exists()
    return str(raised.value)


@pytest.mark.parametrize("case", CLUSTERS + JOBS, ids=lambda case: case[0])
def test_wrong_job_is_refused_with_key_value_and_remedy(case, folder, monkeypatch):
    message = refusal(case, folder, monkeypatch)
    assert "Slurm client" not in message  # nothing was sent
    assert "pass@" not in message and "pw@" not in message and "=abc" not in message  # no secret is shown
    if case in JOBS:
        assert "remedy: " in message or "allowed: " in message


def test_the_document_says_what_is_said(folder, monkeypatch):
    cases = CLUSTERS + JOBS
    rows = [f"| {case[0]} | {refusal(case, folder, monkeypatch).replace('|', '·')} |\n" for case in cases]
    text = HEAD.format(count=len(cases)) + "".join(rows)
    if os.environ.get("UNIAUDIO_UPDATE_GOLDEN"):
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text
    assert len(JOBS) >= 30
