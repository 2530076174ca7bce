"""`annotary compare`: how alike images and texts are."""

from __future__ import annotations

import json
import warnings
from typing import Any

import click

from annotary.cli._annotating import model_option
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.runtime import RuntimeOptions


@click.command("compare", cls=SectionedCommand, short_help="Tell how alike images and texts are.")
@click.argument("one", metavar="A")
@click.argument("others", nargs=-1, required=True, metavar="B...")
@model_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each pair.")
@options_of(RuntimeOptions)
def command(one: str, others: tuple[str, ...], **values: Any) -> None:
    """Tell how alike A is to each B: images (files, addresses) and texts (all else) in any mixture.

    What is told is the cosine of their vectors, and for an image and a text the probability that they belong together.
    "text:" or "image:" before an argument leaves no doubt what it is.
    """
    _compare(one, others, values)


def _compare(one: str, others: tuple[str, ...], values: dict[str, Any]) -> None:
    from annotary.api import Annotator
    from annotary.cli._annotating import loaded
    from annotary.cli._output import tell

    model = Annotator(loaded(values["model"], made(RuntimeOptions, values)).model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        every = model.compare_all(one, others)
    for told in dict.fromkeys(str(warning.message) for warning in said):
        tell(told)
    for other, found in zip(others, every, strict=True):
        if values["as_json"]:
            row = {"a": one, "b": other, "cosine": round(found.cosine, 6)}
            if found.probability is not None:
                row["probability"] = round(found.probability, 6)
            click.echo(json.dumps({**row, "source": model.card.id}, ensure_ascii=False))
        else:
            match = "" if found.probability is None else f"  match {found.probability:.3f}"
            click.echo(f"{found.cosine:+.3f}{match}  {_short(one)} | {_short(other)}")


def _short(told: str) -> str:
    """An argument on a line of its own."""
    from annotary.cli._output import one_line
    from annotary.tasks.label_sets import shortened

    return one_line(shortened(told))
