"""`annotary export`: make a model in another form, such as int8, and tell how close it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from annotary.cli._options import made, options_of
from annotary.export import ExportOptions


@click.command("export", short_help="Make a faster model of a model: int8, or plain ONNX.")
@click.argument("name")
@options_of(ExportOptions)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The new model's directory; NAME-PRECISION in the working folder when nothing is said.",
)
def command(name: str, output: Path | None, **values: Any) -> None:
    """Make a model directory in another precision, and compare it with the model that it came from.

    The new directory is a model like others: annotary tag photos --model dir:DIRECTORY. What the comparison found is
    printed, and in the directory's parity.json.
    """
    from annotary.cli._output import tell
    from annotary.export import export_model

    options = made(ExportOptions, values)
    if options.precision == "int8" and options.calibrate:
        tell(
            f"calibrating {name} with up to {options.samples} photos; this takes minutes for large networks"
        )
    done = export_model(name, options, output)
    click.echo(f"{done.card.id}: {done.size / 1e6:.1f} MB, of {done.size_before / 1e6:.1f} MB")
    for line in done.parity.lines():
        click.echo(line)
    click.echo(f"use it with --model dir:{done.directory}")
