"""`annotary train`: taggers of one's own, from images with tags to a checkpoint."""

from __future__ import annotations

import click

from annotary.cli._groups import LazyGroup

_MODULES = {
    "dataset": "_train_dataset",
    "tagger": "_train_tagger",
    "probe": "_train_probe",
    "curves": "_train_curves",
}


@click.group(
    "train",
    cls=LazyGroup,
    modules=_MODULES,
    short_help="Train a tagger on images with tags.",
)
def command() -> None:
    """Train a tagger: make a dataset of images with tags, then train on it."""
