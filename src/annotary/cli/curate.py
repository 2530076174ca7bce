"""`annotary curate`: which pairs of images and texts are worth training on."""

from __future__ import annotations

from importlib import import_module

import click

_MODULES = {
    "metadata": "_curate_metadata",
    "match": "_curate_match",
    "balance": "_curate_balance",
    "dedup": "_curate_dedup",
    "quality": "_curate_quality",
    "capfilt": "_curate_capfilt",
    "run": "_curate_run",
    "report": "_curate_report",
}


class _Steps(click.Group):
    """Imports a step when it is asked for: the list of all commands needs none of it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        command = import_module(f"annotary.cli.{_MODULES[cmd_name]}").command
        assert isinstance(command, click.Command)
        return command


@click.group("curate", cls=_Steps, short_help="Choose the pairs of images and texts to train on.")
def command() -> None:
    """Choose, out of many pairs of images and texts, those that are worth training on.

    Pairs stand in tables (Parquet, JSON Lines, CSV) or WebDataset tars, in any number of files. A step reads them and
    writes a folder of Parquet files, which is what the next step reads. Steps that were stopped go on when the same
    command is given again.
    """
