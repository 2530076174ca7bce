"""`annotary curate capfilt`: write a second text for every image, and drop what does not fit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._options import SectionedCommand, given, made, options_of
from annotary.curation.capfilt import REPORT_IMAGES, CapFiltOptions
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.runtime import RuntimeOptions
from annotary.sources import SourceOptions

if TYPE_CHECKING:
    from annotary.curation.capfilt import CapFiltResult
    from annotary.pipeline import Outcome

FILE = click.Path(path_type=Path)
"""A path on the command line."""

_NO_FILES = ("recursive", "include_files", "exclude_files")


@click.command(
    "capfilt", cls=SectionedCommand, short_help="Caption images, and drop texts that do not fit."
)
@click.argument("tables", nargs=-1, required=True, metavar="TABLE...")
@click.option(
    "--captioner",
    metavar="NAME|none",
    help="Writes a caption of each image: a name of `annotary models`, hf:OWNER/NAME or dir:PATH; none writes nothing.",
)
@click.option(
    "--matcher",
    metavar="NAME|none",
    help="Filters: a model that judges texts, or embeds images and texts; none drops only what is empty or twice.",
)
@click.option(
    "--output", type=FILE, metavar="FILE", help="The table to write: .parquet, .jsonl or .csv."
)
@options_of(CapFiltOptions)
@click.option(
    "--report",
    type=FILE,
    metavar="FILE",
    help="Write a page of HTML that shows what was dropped; with this alone, TABLE is what this command wrote.",
)
@click.option(
    "--report-images",
    type=click.IntRange(min=1),
    default=REPORT_IMAGES,
    show_default=True,
    metavar="N",
    help="Images that the page shows, at most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress bar and no counts.")
@options_of(SourceOptions, without=_NO_FILES)
@options_of(DecodeOptions, PipelineOptions, RuntimeOptions)
def command(tables: tuple[str, ...], **values: Any) -> None:
    """Write a caption of every image of TABLE, and say of its web texts and of the caption which fit the image.

    TABLE is CSV, JSON Lines, Parquet, a WebDataset tar, or a folder of them, with an image and one or more texts in
    each row. The output has a row for each text. A run that was stopped goes on when the same command is given again.
    """
    click.get_current_context().exit(_capfilt(tables, values))


def _capfilt(tables: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli import Stopped
    from annotary.cli._output import tell
    from annotary.cli._progress import progress_bar
    from annotary.curation.capfilt import capfilt

    if values["output"] is None and values["report"] is not None:
        return _report(tables, values)
    models: dict[str, str | None] = {}
    for name, kind in (("captioner", "writes captions"), ("matcher", "filters")):
        if values[name] is None:
            raise UsageError(f"say which model {kind}: --{name} NAME, or --{name} none")
        models[name] = None if values[name] == "none" else values[name]
    if values["output"] is None:
        raise UsageError("say where the table goes: --output FILE.parquet, .jsonl or .csv")
    options = made(CapFiltOptions, values)
    if options.keep_share is not None and values["shard"] is not None:
        raise UsageError("--keep-share is of all texts, and --shard does a part; say --threshold")
    started = time.monotonic()
    total: Queue[int] = Queue()
    try:
        # How many images there are is known when all tables were gone through.
        with progress_bar("filtering", total.get, quiet=values["quiet"]) as bar:

            def update(outcome: Outcome, images: int) -> None:
                if total.empty():
                    total.put(images)
                bar.update(outcome)

            result = capfilt(
                *(tables, values["output"], options),
                captioner=models["captioner"],
                matcher=models["matcher"],
                report=values["report"],
                report_images=values["report_images"],
                source_options=made(SourceOptions, values),
                decode_options=made(DecodeOptions, values),
                pipeline_options=made(PipelineOptions, values),
                runtime_options=made(RuntimeOptions, values),
                on_image=update,
            )
    except KeyboardInterrupt as error:
        raise Stopped("stopped; the same command goes on where it stopped") from error
    if values["as_json"]:
        click.echo(json.dumps(result.to_json(), indent=1))
    if not values["quiet"]:
        for line in _told(result, time.monotonic() - started, values["report"]):
            tell(line)
    return 1 if result.failures is not None else 0


def _report(tables: tuple[str, ...], values: dict[str, Any]) -> int:
    """A page of a finished table."""
    from annotary.cli._output import tell
    from annotary.curation.capfilt import write_report

    told = list(given(values, CapFiltOptions))
    told = [flag for flag in told if flag != "--seed"]
    told += [f"--{name}" for name in ("captioner", "matcher") if values[name] is not None]
    if told:
        raise UsageError(f"{', '.join(told)}: only with --output, which makes a table")
    if len(tables) != 1:
        raise UsageError("--report without --output is of one table that this command wrote")
    shown = write_report(
        *(tables[0], values["report"]),
        images=values["report_images"],
        seed=values["seed"],
        source_options=made(SourceOptions, values),
        decode_options=made(DecodeOptions, values),
    )
    if values["as_json"]:
        click.echo(json.dumps({"report": str(values["report"]), "images": shown}))
    if not values["quiet"]:
        tell(f"{shown:,} images in {values['report']}")
    return 0


def _told(result: CapFiltResult, seconds: float, report: Path | None) -> list[str]:
    """The lines at the end of a run."""
    from annotary.cli._output import counts

    lines = [counts(result.outcome, "done", seconds, result.failures)]
    for origin, one in result.texts.items():
        if not one["texts"]:
            continue
        noise = one["noise_ratio"]
        told = "" if noise is None else f"; noise ratio {noise:.1%}"
        why = "; ".join(f"{why}: {count:,}" for why, count in one["dropped"].items())
        dropped = one["texts"] - one["kept"]
        lines.append(
            f"{origin}: {one['kept']:,} of {one['texts']:,} kept, {dropped:,} dropped"
            + (f" ({why})" if why else "")
            + told
        )
    if result.lowest_kept is not None:
        lines.append(f"lowest {_score_name(result)} that is kept: {result.lowest_kept:g}")
    if result.cut:
        lines.append(
            f"texts longer than the filter reads, of which the end is left out: {result.cut:,}"
        )
    if result.settings["same_model"]:
        lines.append("captioner and filter are the same model, which likes what it wrote itself")
    lines.append(
        f"{result.rows:,} texts in {result.output}" + (f"; see {report}" if report else "")
    )
    return lines


def _score_name(result: CapFiltResult) -> str:
    return "cosine" if result.settings["score"] == "cosine" else "score"
