"""`annotary pull`: fetches models of the Hugging Face hub, and checks those that are here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from annotary.runtime import RuntimeOptions

if TYPE_CHECKING:
    from annotary.hub import Progress
    from annotary.models import Found


@click.command("pull", short_help="Fetch models of the Hugging Face hub.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--update",
    is_flag=True,
    help="Take what the revision is now, not what it was when it was fetched.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option(
    "--runtime",
    type=click.Choice(("auto", "onnxruntime", "openvino", "torch")),
    default="auto",
    show_default=True,
    help="The library that will run it, where that decides which files are needed.",
)
def command(names: tuple[str, ...], update: bool, quiet: bool, runtime: Any) -> None:
    """Fetch models: a name of `annotary models`, or hf:OWNER/NAME, with @REVISION for a branch, a tag or a commit.

    What is here is checked, and fetched anew where it is damaged. A download that was stopped goes on.
    """
    from annotary.cli._output import one_line
    from annotary.models import check_pullable, pull

    options = RuntimeOptions(runtime=runtime)
    for name in names:
        check_pullable(name)
    for name in names:
        with _bar(is_quiet=quiet) as progress:
            found = pull(name, options, is_update=update, progress=progress)
        for line in _told(found):
            click.echo(one_line(line))


def _told(found: Found) -> Iterator[str]:
    """What is here now: the model, its files, and where they are."""
    from annotary.models import told_size

    card = found.card
    state = "fetched" if found.is_fetched else "here already"
    source = "" if found.name.startswith(card.source) else f"{card.source} "
    yield f"{found.name}: {state}, {source}at {card.revision}, licence {card.licence}"
    for name, digest in card.files.items():
        size = told_size((found.directory / name).stat().st_size)
        yield f"  {name}  {size}  sha256 {digest[:12]}"
    yield f"  in {found.directory}"


@contextmanager
def _bar(*, is_quiet: bool) -> Iterator[Progress]:
    """A bar a file on standard error, where that is a terminal."""
    if is_quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total or None)
            bar.update(tasks[name], completed=done)

        yield show
