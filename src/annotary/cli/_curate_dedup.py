"""`annotary curate dedup`: let rows go that are the same as others, or in an evaluation set."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from annotary.cli._curating import finish, output_options, step_bar, step_options, tables_argument
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.curation.dedup import DedupOptions
from annotary.curation.looks import PictureOptions
from annotary.curation.steps import StepOptions
from annotary.images import DecodeOptions
from annotary.runtime import RuntimeOptions
from annotary.sources import SourceOptions


@click.command("dedup", cls=SectionedCommand, short_help="Leave out copies, and evaluation images.")
@tables_argument
@output_options
@click.option(
    "--looks",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where measures of pictures are kept, or are already, as other steps have written them.",
)
@options_of(DedupOptions, PictureOptions, DecodeOptions)
@options_of(SourceOptions, without=("recursive", "include_files", "exclude_files", "shard"))
@options_of(RuntimeOptions)
@step_options
def command(tables: tuple[str, ...], **values: Any) -> None:
    """Leave out rows with the same text, address or image as a row before, and rows of evaluation sets.

    TABLE is a .parquet, .jsonl, .csv or .tar, or a folder of them. DIR gets the rows that stay, and
    _duplicates.parquet with those that go, each with the row that it is the same as.
    """
    click.get_current_context().exit(_dedup(tables, values))


def _dedup(tables: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._output import tell
    from annotary.curation.dedup import dedup
    from annotary.curation.looks import LooksStep
    from annotary.curation.steps import read_report

    options, steps = made(DedupOptions, values), made(StepOptions, values)
    shardless = {name: value for name, value in values.items() if name != "shard"}
    looks = LooksStep(
        made(SourceOptions, shardless), made(DecodeOptions, values), made(PictureOptions, values)
    )
    watch = partial(step_bar, quiet=values["quiet"])
    result = dedup(
        tables,
        values["output"],
        options,
        steps,
        looks=looks,
        looks_folder=values["looks"],
        runtime=made(RuntimeOptions, values),
        watch=watch,
    )
    if result.missing and not result.tallies:
        if not values["quiet"]:
            tell(
                f"{result.missing:,} parts are left for others (--shard); say the same again when they are done:"
                " nothing can be written before all rows are known"
            )
        return 0
    report = read_report(result.folder)
    unreadable = report.get("evaluation_images_unreadable", 0)
    more = ""
    if unreadable:
        more = f"{unreadable:,} of {report['evaluation_images']:,} evaluation images cannot be read"
    marked = sum(rows for name, rows in result.total.beside.items() if name.startswith("marked: "))
    if values["keep_duplicates"]:
        more = f"{marked:,} are marked in the column 'duplicate_by'" + (f"; {more}" if more else "")
    return finish(result, "compared", values, more)
