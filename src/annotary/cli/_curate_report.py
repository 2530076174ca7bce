"""`annotary curate report`: what a step or a pipeline has done, as a page."""

from __future__ import annotations

from pathlib import Path

import click

from annotary.errors import UsageError


@click.command("report", short_help="Show what a step or a pipeline has done as a page.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="The page; _report.html in DIR without it, or report.html in that of a pipeline.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.svg",
    help="Write the plot of texts against the rank of entries, too; with this alone, nothing else.",
)
@click.option("--quiet", is_flag=True, help="Tell nothing but errors.")
def command(folder: Path, output: Path | None, plot: Path | None, quiet: bool) -> None:
    """Write a page of HTML about DIR, the folder of a step of curation or of a whole pipeline.

    It tells what came in and went out and why rows were dropped, and of entries how many texts have them before and
    after. It needs nothing but itself.
    """
    from annotary.cli._output import tell
    from annotary.curation.report_page import is_pipeline, write_page, write_plot

    if not folder.is_dir():
        raise UsageError(f"no such folder: {str(folder)!r}")
    written = []
    if plot is not None:
        write_plot(folder, plot)
        written.append(plot)
    if output is not None or plot is None:
        # In the folder of a step a name without "_" would be taken for a table by pyarrow.
        place = output or folder / ("report.html" if is_pipeline(folder) else "_report.html")
        write_page(folder, place)
        written.append(place)
    if not quiet:
        for path in written:
            tell(f"written: {path}")
