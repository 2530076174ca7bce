"""`annotary embed`: turn images into vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from annotary.cli._annotating import Annotating, loaded, model_option, running_options
from annotary.cli._options import SectionedCommand
from annotary.cli._writing import writing_options
from annotary.errors import UsageError


@click.command("embed", cls=SectionedCommand, short_help="Turn images into vectors.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@model_option
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the vectors in this catalogue, for `annotary search`; only new and changed files are embedded.",
)
@writing_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Turn images into vectors of length 1, near to each other when the images are alike.

    `--output vectors.npy` writes a matrix, and a table that says which row is which image. A run that was stopped goes
    on when the same command is given again.
    """
    click.get_current_context().exit(_embed(paths, values))


def _embed(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._lines import as_line
    from annotary.tasks.embedding import Embed
    from annotary.tasks.encoding import image_encoder

    annotating = Annotating(paths, values)
    annotating.check("embedding")
    has_output = annotating.writing.form is not None or values["as_json"]
    if (values["catalog"] is not None) == has_output:
        raise UsageError(
            "say one of --output FILE, such as vectors.npy, --json, and --catalog FOLDER"
        )
    found = loaded(values["model"], annotating.runtime)
    task = Embed(image_encoder(found.model))
    settings = {"command": "embed", "model": task.source, "weights": found.weights}
    if values["catalog"] is not None:
        held = {"embedding": found.in_catalog(values["model"])}
        return annotating.fill(values["catalog"], [task], held, ("embedding", "embedded"))
    return annotating.run([task], settings, ("embedding", "embedded"), as_line("embedding"))
