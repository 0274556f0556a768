"""`uniaudio config`: show and check configs."""

import click

from uniaudio.configs.codec import CodecConfig
from uniaudio.configs.farm import FarmConfig
from uniaudio.configs.load import dump_config, load_config
from uniaudio.configs.run import RunConfig
from uniaudio.configs.section import Section
from uniaudio.configs.tasks import load_tasks
from uniaudio.configs.vocabulary import load_table

KINDS: dict[str, type[Section]] = {"runs": RunConfig, "farms": FarmConfig, "codecs": CodecConfig}


@click.command()
@click.argument("name")
@click.argument("overrides", nargs=-1)
@click.option("--kind", type=click.Choice(list(KINDS)), default="runs", show_default=True)
def config(name: str, overrides: tuple[str, ...], kind: str) -> None:
    """Check a config (a YAML file, or the name of a shipped one) and show it resolved.

    Example: uniaudio config paper_1b parallel.tensor_parallel_size=2
    """
    loaded = load_config(KINDS[kind], name, folder=kind, overrides=overrides)
    if isinstance(loaded, RunConfig):  # not among the rules: a job may be submitted where the files that it names are not seen
        load_tasks(loaded.data.tasks)
        load_table(loaded.model.vocabulary)
    click.echo(dump_config(loaded), nl=False)
