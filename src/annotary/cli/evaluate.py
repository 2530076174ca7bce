"""`annotary evaluate`: how good a model is, on images that somebody has labelled, captioned or boxed."""

from __future__ import annotations

import click

from annotary.cli import _evaluate_retrieval, _evaluate_zero_shot


@click.group("evaluate", short_help="Measure a model on labelled or captioned images.")
def command() -> None:
    """Measure how well a model classifies and finds, on images that somebody has labelled or captioned."""


for _module in (_evaluate_zero_shot, _evaluate_retrieval):
    command.add_command(_module.command)
