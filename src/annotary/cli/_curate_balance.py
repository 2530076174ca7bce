"""`annotary curate balance`: draw pairs so that no entry has far more of them than others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from annotary.cli._curating import finish, output_options, step_bar, step_options
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.curation.balance import BalanceOptions
from annotary.curation.steps import StepOptions


@click.command("balance", cls=SectionedCommand, short_help="Keep less of what most texts say.")
@click.argument("matched", type=click.Path(path_type=Path), metavar="MATCHED")
@click.option(
    "--tables",
    multiple=True,
    metavar="TABLE",
    help="Balance these instead: what later steps left of the matched tables. May be given several times.",
)
@click.option(
    "--counts",
    type=click.Path(path_type=Path),
    metavar="FILE.npy",
    help="Counts of texts for each entry, in place of those of MATCHED, such as those of a larger pool.",
)
@output_options
@options_of(BalanceOptions)
@step_options
def command(matched: Path, **values: Any) -> None:
    """Draw pairs so that an entry which more than t texts contain is drawn about t times, as MetaCLIP does.

    A pair is kept when any of the entries in its text is drawn, so an entry may keep more than t beside rare ones.

    MATCHED is the folder that `annotary curate match` has written. The same pairs are kept whatever the order and the
    number of tables, and a greater t keeps all that a smaller one keeps.
    """
    click.get_current_context().exit(_balance(matched, values))


def _balance(matched: Path, values: dict[str, Any]) -> int:
    from annotary.curation.balance import balance, read_counts_file
    from annotary.curation.steps import read_report
    from annotary.curation.tables import find_parts

    options, steps = made(BalanceOptions, values), made(StepOptions, values)
    tables = values["tables"] or None
    counts = None if values["counts"] is None else read_counts_file(values["counts"])
    parts = find_parts([matched] if tables is None else tables)
    with step_bar("balancing", len(parts), quiet=values["quiet"]) as on_part:
        result = balance(
            *(matched, values["output"], options, steps),
            counts=counts,
            tables=tables,
            on_part=on_part,
        )
    report = read_report(result.folder)
    share = report.get("texts_kept", 0) / max(1, report.get("texts", 0))
    told = f"t = {report['settings']['t']:,.6g}; {share:.1%} of the texts kept"
    return finish(result, "balanced", values, told)
