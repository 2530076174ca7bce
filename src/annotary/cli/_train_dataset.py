"""`annotary train dataset`: from images with tags to a folder that training reads."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from annotary.cli._options import SectionedCommand, made, options_of
from annotary.errors import UsageError
from annotary.sources import SourceOptions
from annotary.training.dataset.building import BuildOptions, Recipe
from annotary.training.dataset.choosing import SplitOptions
from annotary.training.dataset.image_cache import CacheOptions
from annotary.training.dataset.posts import PostOptions
from annotary.training.dataset.tag_lists import TagListOptions

if TYPE_CHECKING:
    from annotary.training.dataset.building import Built
    from annotary.training.dataset.collecting import OnPost

_UNUSED = ("shard", "image_column")  # of sources: all images are needed, and posts have the other


@click.command(
    "dataset", cls=SectionedCommand, short_help="Make a dataset to train on of images with tags."
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The folder that the dataset is written to.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the counts as JSON on standard output."
)
@click.option("--quiet", is_flag=True, help="No progress bar and no counts; errors are told.")
@options_of(PostOptions, TagListOptions, SplitOptions, CacheOptions, BuildOptions)
@options_of(SourceOptions, without=_UNUSED)
@click.pass_context
def command(context: click.Context, /, inputs: tuple[str, ...], **values: Any) -> int:
    """Make a dataset of images with tags: rules, copies left out, a validation set, reduced pictures, and a report.

    INPUT is a folder of images with .txt, .json, .caption or .xmp files beside them or a metadata.jsonl above them, a
    table (.csv, .jsonl, .parquet), posts of Danbooru (.jsonl), a database of DeepDanbooru (.sqlite), a WebDataset
    (.tar), kohya's meta.json, or a COCO file.
    """
    from annotary.cli._output import tell
    from annotary.training.dataset.building import build

    is_sized = context.get_parameter_source("validation") is ParameterSource.COMMANDLINE
    if is_sized and values["validation_ids"] is not None:
        raise UsageError(
            "--validation has no effect beside --validation-ids, which names the images; leave one of them out"
        )
    recipe = Recipe(
        inputs,
        made(PostOptions, values),
        made(TagListOptions, values),
        made(SplitOptions, values),
        made(CacheOptions, values),
        made(SourceOptions, {name: value for name, value in values.items() if name not in _UNUSED}),
        made(BuildOptions, values),
    )
    started = time.monotonic()
    with _bar(quiet=values["quiet"]) as on_post:
        built = build(recipe, values["output"], on_post=on_post)
    if values["as_json"]:
        told = {"folder": str(built.folder), "counts": built.counts, "dropped": built.reasons}
        click.echo(json.dumps({**told, "notes": built.notes}, ensure_ascii=False))
    if not values["quiet"]:
        for line in _lines(built, time.monotonic() - started):
            tell(line)
    else:
        for line in built.lost:
            tell(line)
    return 1 if built.lost else 0


def _lines(built: Built, seconds: float) -> Iterator[str]:
    counts = built.counts
    yield (
        f"{counts['posts']:,} images looked at in {seconds:.1f} s: {counts['train']:,} to train on,"
        f" {counts['validation']:,} to measure on, {counts['tags']:,} tags; {counts['dropped_tags']:,} tags left out"
    )
    if built.reasons:
        listed = ", ".join(f"{number:,} {why}" for why, number in built.reasons.items())
        yield f"{counts['dropped_images']:,} images left out: {listed}"
    yield from built.notes
    yield f"see {built.folder / 'summary.html'}"


@contextmanager
def _bar(*, quiet: bool) -> Iterator[OnPost]:
    """A line on standard error while pictures are looked at: how many, and how many a second."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, bad: None  # noqa: ARG005
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("looking", total=None, told="looking at images")
        started = time.monotonic()

        def update(done: int, bad: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-6)
            told = f"{done:,} images, {rate:.1f}/s" + (f", {bad:,} left out" if bad else "")
            bar.update(task, told=told)

        yield update
