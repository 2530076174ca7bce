"""`annotary evaluate`: how good a model is, on images that somebody has labelled, captioned or boxed."""

from __future__ import annotations

import click

from annotary.cli import (
    _evaluate_captions,
    _evaluate_detection,
    _evaluate_retrieval,
    _evaluate_zero_shot,
)


@click.group("evaluate", short_help="Measure a model on images whose truth is known.")
def command() -> None:
    """Measure how good a model is, on images that somebody has labelled, captioned or boxed."""


for _module in (_evaluate_zero_shot, _evaluate_retrieval, _evaluate_captions, _evaluate_detection):
    command.add_command(_module.command)
