"""`annotary curate quality`: drops pairs whose image or text is not good enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from annotary.cli._curating import finish, output_options, step_bar, step_options, tables_argument
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.curation.looks import LooksStep, PictureOptions
from annotary.curation.quality import QualityOptions
from annotary.curation.steps import StepOptions
from annotary.images import DecodeOptions
from annotary.sources import SourceOptions


@click.command(
    "quality", cls=SectionedCommand, short_help="Drop pairs with a bad image or a bad text."
)
@tables_argument
@click.option(
    "--looks",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder for what is measured of the images: what it holds is not measured again.",
)
@output_options
@options_of(QualityOptions)
@options_of(PictureOptions)
@options_of(SourceOptions, without=("recursive", "include_files", "exclude_files", "shard"))
@options_of(DecodeOptions)
@step_options
def command(tables: tuple[str, ...], **values: Any) -> None:
    """Drop the pairs of some tables whose image or text is not good enough, each with a reason.

    TABLE is a .parquet, .jsonl, .csv or .tar, or a folder of them. Nothing is asked unless an option or a preset says
    so, and only what is asked for is measured: without limits for images, none is read.
    """
    click.get_current_context().exit(_quality(tables, values))


def _quality(tables: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.curation.quality import DROPPED, filter_quality
    from annotary.curation.tables import find_parts

    looks = LooksStep(
        made(SourceOptions, {**values, "shard": None}),
        made(DecodeOptions, values),
        made(PictureOptions, values),
    )
    options, steps = made(QualityOptions, values), made(StepOptions, values)
    with step_bar("filtering", len(find_parts(tables)), quiet=values["quiet"]) as on_part:
        result = filter_quality(
            tables,
            values["output"],
            options,
            steps,
            looks=looks,
            looks_folder=values["looks"],
            on_part=on_part,
        )
    marked = sum(rows for name, rows in result.total.beside.items() if name.startswith("marked "))
    told = f"{marked:,} are marked in the column {DROPPED!r}" if values["keep_dropped"] else ""
    return finish(result, "looked at", values, told)
