"""`annotary compare`: how alike images and texts are."""

from __future__ import annotations

import json
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
    from annotary.cli._output import one_line

    model = Annotator(loaded(values["model"], made(RuntimeOptions, values)).model)
    for other in others:
        found = model.compare(one, other)
        if values["as_json"]:
            told = {"a": one, "b": other, "cosine": round(found.cosine, 6)}
            if found.probability is not None:
                told["probability"] = round(found.probability, 6)
            click.echo(json.dumps({**told, "source": model.card.id}, ensure_ascii=False))
        else:
            match = "" if found.probability is None else f"  match {found.probability:.3f}"
            click.echo(f"{found.cosine:+.3f}{match}  {one_line(one)} | {one_line(other)}")
