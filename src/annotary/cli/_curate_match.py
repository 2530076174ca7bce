"""`annotary curate match`: which entries of a list occur in which text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from annotary.cli._curating import finish, output_options, step_bar, step_options, tables_argument
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.curation.match import MatchOptions
from annotary.curation.steps import StepOptions


@click.command("match", cls=SectionedCommand, short_help="Find the entries that texts contain.")
@tables_argument
@click.option(
    "--entries",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A list of entries, as annotary curate metadata writes it, or one a line; without it the numbers to 99 and"
    " the names of WordNet.",
)
@output_options
@options_of(MatchOptions)
@step_options
def command(tables: tuple[str, ...], **values: Any) -> None:
    """Find, for every text of some tables, the entries of a list that it contains, by MetaCLIP's rule.

    TABLE is a .parquet, .jsonl, .csv or .tar, or a folder of them. DIR gets all columns of the tables, one more with
    the ids of entries for each column of texts, and counts of texts for each entry.
    """
    click.get_current_context().exit(_match(tables, values))


def _match(tables: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._output import tell
    from annotary.curation.entries import read_entries
    from annotary.curation.match import english_entries, match
    from annotary.curation.steps import read_report
    from annotary.curation.tables import find_parts

    options, steps = made(MatchOptions, values), made(StepOptions, values)
    parts = find_parts(tables)
    entries = english_entries() if values["entries"] is None else read_entries(values["entries"])
    notice = entries.notice()
    if notice is not None and not values["quiet"]:
        tell(notice)
    with step_bar("matching", len(parts), quiet=values["quiet"]) as on_part:
        result = match(tables, entries, values["output"], options, steps, on_part=on_part)
    report = read_report(result.folder)
    texts = report.get("texts", 0)
    told = (
        f"{report['texts_matched'] / texts:.1%} of the texts match an entry"
        if texts
        else "no texts"
    )
    if "entries" in report:  # which it is when no part is left for others
        told += f", {report['entries_matched']:,} of {report['entries']:,} entries"
    if report.get("entries_dead"):
        told += f" ({report['entries_dead']:,} can match no text)"
    return finish(result, "matched", values, told)
