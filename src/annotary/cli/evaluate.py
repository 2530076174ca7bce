"""`annotary evaluate`: how good a model is, on images that somebody has labelled, captioned, boxed or tagged."""

from __future__ import annotations

import click

from annotary.cli._groups import LazyGroup

_MODULES = {
    "zero-shot": "_evaluate_zero_shot",
    "retrieval": "_evaluate_retrieval",
    "captions": "_evaluate_captions",
    "detection": "_evaluate_detection",
    "tagging": "_evaluate_tagging",
}


@click.group(
    "evaluate",
    cls=LazyGroup,
    modules=_MODULES,
    short_help="Measure a model on images whose truth is known.",
)
def command() -> None:
    """Measure how good a model is, on images that somebody has labelled, captioned, boxed or tagged."""
