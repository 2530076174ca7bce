"""`annotary curate`: which pairs of images and texts are worth training on."""

from __future__ import annotations

import click

from annotary.cli._groups import LazyGroup

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


@click.group(
    "curate",
    cls=LazyGroup,
    modules=_MODULES,
    short_help="Choose the pairs of images and texts to train on.",
)
def command() -> None:
    """Choose, out of many pairs of images and texts, those that are worth training on.

    Pairs stand in tables (Parquet, JSON Lines, CSV) or WebDataset tars, in any number of files. A step reads them and
    writes a folder of Parquet files, which is what the next step reads. Steps that were stopped go on when the same
    command is given again.
    """
