"""Every command that the README and docs/ print is one that the command line takes; what they link to is there."""

import re
import shlex
from pathlib import Path

import click
import pytest

from uniaudio.cli import cli
from uniaudio.configs.cluster import ClusterConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import load_config
from uniaudio.configs.run import RunConfig

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
LINES = [part.strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&")]
COMMANDS = [line for line in LINES if line.startswith("uniaudio ")]
MAKE_TARGETS = sorted(set(re.findall(r"(?:^|`|: )make ([a-z-]+)", README, flags=re.MULTILINE)))


def parse(command: click.Command, words: list[str]) -> tuple[click.Command, dict]:
    """The innermost command and its parameters; click's UsageError for what it would not take."""
    context = command.make_context(command.name, list(words))
    if isinstance(command, click.Group):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        return parse(inner, rest)
    return command, context.params


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_is_one(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if "--help" in words:
        with pytest.raises(click.exceptions.Exit):
            parse(cli, words)
        return
    command, given = parse(cli, words)
    overrides = given.get("overrides", ())
    if command.name == "train" or (command.name == "config" and given["kind"] == "runs"):
        load_config(RunConfig, given.get("run") or given["name"], folder="runs", overrides=overrides)
    if command.name == "run":
        load_config(FarmConfig, given["farm"], folder="farms", overrides=overrides)
    if command.name == "submit":
        load_config(ClusterConfig, given["cluster_name"], folder="clusters")
        kind, folder = (FarmConfig, "farms") if given["farm"] else (RunConfig, "runs")
        load_config(kind, given["config"], folder=folder, overrides=overrides)


def test_the_command_that_shows_runs_is_one_of_mlflow() -> None:
    from mlflow import environment_variables
    from mlflow.cli import cli as mlflow

    [line] = [line for line in LINES if "bin/mlflow " in line]
    setting, program, *words = shlex.split(line, comments=True)
    assert program == ".venv/bin/mlflow" and hasattr(environment_variables, setting.partition("=")[0])
    _, given = parse(mlflow, words)
    assert given["backend_store_uri"] == "sqlite:///runs/mlflow.db", "where `train.output_dir=runs/mine` leaves it"


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) > 10 and {line.split()[1] for line in COMMANDS} > {"corpus", "tokenize", "shards", "train", "generate", "submit"}


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_a_make_target_of_the_readme_is_one(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:[a-z_]+/)+[a-zA-Z_]+\.(?:py|md))`", README))))
def test_a_file_that_the_readme_names_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
BLOCK_LINE = re.compile(r"^(?:    |\$ )?(?:\.venv/bin/)?(uniaudio [a-z].*)$")


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8").replace("\\\n", " ")


PAGE_COMMANDS = sorted(
    {
        (str(page.relative_to(ROOT)), found[1])
        for page in PAGES
        for line in _text(page).splitlines()
        if "--help" not in line and (found := BLOCK_LINE.match(line))
    }
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_goes_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link and not link.startswith("mailto:")]
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize(("page", "line"), PAGE_COMMANDS, ids=[f"{page}: {line[:50]}" for page, line in PAGE_COMMANDS])
def test_a_command_of_a_page_is_one(page: str, line: str) -> None:
    words = shlex.split(line.split(" | ")[0].split(" && ")[0].split(" > ")[0], comments=True)[1:]
    parse(cli, words)


def test_pages_have_commands() -> None:
    assert len({page for page, _ in PAGE_COMMANDS}) > 5
