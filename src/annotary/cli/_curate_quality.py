"""`annotary curate quality`: drops pairs whose image or text is not good enough."""

from __future__ import annotations

from dataclasses import replace
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
    from annotary.cli._output import tell
    from annotary.curation.quality import DROPPED, check_quality, filter_quality
    from annotary.curation.steps import FAILURES, run_step
    from annotary.curation.tables import find_parts

    looks = LooksStep(
        made(SourceOptions, {**values, "shard": None}),
        made(DecodeOptions, values),
        made(PictureOptions, values),
    )
    options, steps = made(QualityOptions, values), made(StepOptions, values)
    parts = find_parts(tables)
    check_quality(parts, options, looks)
    if values["looks"] is not None and options.limits().ask_images:
        with step_bar("measuring images", len(parts), quiet=values["quiet"]) as on_part:
            again = replace(steps, on_existing="continue")
            run_step(looks, parts, values["looks"], again, on_part=on_part)
    with step_bar("filtering", len(parts), quiet=values["quiet"]) as on_part:
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
    code = finish(result, "looked at", values, told)
    if values["looks"] is not None and (values["looks"] / FAILURES).exists():
        if not values["quiet"]:
            tell(f"images that could not be read are listed in {values['looks'] / FAILURES}")
        return 1
    return code
