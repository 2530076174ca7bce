"""What the steps of curation share: their options, a run under its bar, and the counts at its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from annotary.cli._options import options_of
from annotary.curation.steps import StepOptions

if TYPE_CHECKING:
    from annotary.curation.steps import OnPart, StepResult, Tally

Function = TypeVar("Function", bound=Callable[..., Any])

tables_argument = click.argument("tables", nargs=-1, required=True, metavar="TABLE...")

step_options = options_of(StepOptions)


def output_options(function: Function) -> Function:
    """Where a step is written, and what is told."""
    for option in (
        click.option(
            "--quiet", is_flag=True, help="No progress bar and no counts; errors are told."
        ),
        click.option(
            "--json", "as_json", is_flag=True, help="Print the report as JSON on standard output."
        ),
        click.option(
            "--output",
            type=click.Path(path_type=Path),
            required=True,
            metavar="DIR",
            help="The folder that the tables are written to.",
        ),
    ):
        function = option(function)
    return function


@contextmanager
def step_bar(verb: str, parts: int, *, quiet: bool) -> Iterator[OnPart]:
    """A bar on standard error while a step lasts: parts, rows, and rows per second.

    Args:
        verb: What is being done ("matching").
        parts: How many parts there are.
        quiet: Show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield _show_nothing
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(verb),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} parts{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=parts, told="")
        rows = 0

        def update(done: int, tally: Tally) -> None:
            nonlocal rows
            rows += tally.rows_in
            bar.update(task, completed=done, told=f", {rows:,} rows")

        yield update


def finish(result: StepResult, verb: str, values: Mapping[str, Any], more: str = "") -> int:
    """Tell what a step has done.

    Args:
        result: It.
        verb: What was done ("matched").
        values: The values of the command's options.
        more: What else is worth a word.

    Returns:
        The exit code: 1 when something was broken.
    """
    from annotary.cli._output import tell
    from annotary.curation.steps import FAILURES, read_report

    if values.get("as_json"):
        click.echo(json.dumps(read_report(result.folder), ensure_ascii=False))
    if not values.get("quiet"):
        tell(counts(result, verb) + (f"; {more}" if more else ""))
        if result.missing:
            tell(f"{result.missing:,} parts are left for others (--shard)")
        if result.total.failures:
            tell(
                f"{len(result.total.failures):,} broken parts and rows; see {result.folder / FAILURES}"
            )
    return 1 if result.total.failures else 0


def counts(result: StepResult, verb: str) -> str:
    """The line at the end of a step."""
    total = result.total
    told = f"{total.rows_in:,} rows {verb} in {result.seconds:.1f} s, {total.rows_out:,} written"
    if result.done_before:
        told += f"; {result.done_before:,} of {len(result.tallies):,} parts were done before"
    reasons = sorted(total.dropped.items(), key=lambda one: (-one[1], one[0]))
    if reasons:
        told += "; dropped: " + ", ".join(f"{rows:,} {why}" for why, rows in reasons[:6])
        told += f" and {of_more(len(reasons) - 6)}" if len(reasons) > 6 else ""
    return told


def of_more(reasons: int) -> str:
    """Reasons that are not told each by itself."""
    return "1 reason more" if reasons == 1 else f"{reasons} reasons more"


def _show_nothing(done: int, tally: Tally) -> None:
    """There is no bar."""
