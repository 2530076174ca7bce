"""`annotary label`: make a labelled dataset, split into parts, of unlabelled images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._annotating import loaded, model_option, running_options
from annotary.cli._label_tasks import SHARED, check_task, described, named
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import without_sidecars
from annotary.datasets import Building, Dataset, DatasetOptions, Labelling, check_format, formats
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.sources import SourceOptions
from annotary.tasks.composing import ComposeOptions
from annotary.tasks.detection import DetectionOptions
from annotary.tasks.label_sets import LabelOptions
from annotary.tasks.zero_shot import ZeroShotOptions

if TYPE_CHECKING:
    from annotary.pipeline import Outcome

DEFAULT_FORMATS = {"classify": "folders", "detect": "yolo"}
"""What is made when nothing is said."""

MOST = 100
"""Labels in the table that is printed; of more those with the most images are."""


@click.command("label", cls=SectionedCommand, short_help="Make a labelled, split dataset.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="Where the dataset is made; a new folder, or one to go on with.",
)
@click.option(
    "--format",
    "form",
    metavar="NAME",
    help=f"What is made: {', '.join(formats())}; folders when nothing is said, and yolo of boxes.",
)
@click.option(
    "--task",
    type=click.Choice(["classify", "detect"]),
    default="classify",
    show_default=True,
    help="What images are labelled with: one label each, or boxes.",
)
@model_option
@options_of(LabelOptions, ZeroShotOptions)
@options_of(DetectionOptions, without=SHARED)
@options_of(ComposeOptions, DatasetOptions)
@click.option(
    "--text-cache/--no-text-cache",
    default=True,
    help="Remember the vectors of texts between runs.",
)
@click.option("--retry-failed", is_flag=True, help="Try the images again that failed before.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress bar and no counts.")
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Make a labelled dataset of unlabelled images: each gets its best label, and a part such as train or test.

    With --task detect images get boxes, for trainers of detectors.

    The originals are not touched. A run that was stopped goes on when the same command is given again, and images that
    were added since are added; none changes its part. Images that cannot be read are listed in failures.jsonl.
    """
    click.get_current_context().exit(_label(paths, values))


def _label(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._output import tell
    from annotary.sources import can_be_counted, open_sources

    # Whatever can be wrong is found before anything is written.
    form = values["form"] or DEFAULT_FORMATS[values["task"]]
    check_format(form, values["task"])
    check_task(values)
    paths = without_sidecars(paths)
    source_options, decode_options = made(SourceOptions, values), made(DecodeOptions, values)
    pipeline_options, options = made(PipelineOptions, values), made(DatasetOptions, values)
    items = open_sources(paths, source_options)
    labelled_with = described(values, loaded)
    for note in () if values["quiet"] else labelled_with.notes:
        tell(note)
    items = chain(list(islice(items, 1)), items)  # a shard may be empty
    count = None
    if can_be_counted(paths):
        count = lambda: sum(1 for _ in open_sources(paths, source_options))  # noqa: E731
    with Dataset(
        *(values["output"], form, options, labelled_with.description, paths),
        retry_failed=values["retry_failed"],
    ) as dataset:
        with Labelling(
            *(dataset, items, labelled_with.task),
            *(source_options, decode_options, pipeline_options),
        ) as labelling:
            seconds = _watch(labelling, "labelling", count, quiet=values["quiet"])
        building = Building(dataset)
        _watch(building, "placing", lambda: labelling.outcome.seen, quiet=values["quiet"])
        failures = dataset.failures.path
    if not values["quiet"]:
        _tell_counts(labelling.outcome, building.outcome, seconds, failures)
    _print(building.summary, as_json=values["as_json"])
    outcomes = (labelling.outcome, building.outcome)
    return 1 if any(outcome.failed + outcome.failed_before for outcome in outcomes) else 0


def _watch(
    work: Labelling | Building, verb: str, count: Callable[[], int] | None, *, quiet: bool
) -> float:
    """Let a half of the work go on under a bar; the seconds that it took."""
    from annotary.cli import Stopped
    from annotary.cli._progress import progress_bar

    started = time.monotonic()
    try:
        with progress_bar(verb, count, quiet=quiet) as bar:
            for _ in work:
                bar.update(work.outcome)
    except KeyboardInterrupt as error:
        raise Stopped("stopped; the same command goes on where it stopped") from error
    return time.monotonic() - started


def _tell_counts(labelled: Outcome, placed: Outcome, seconds: float, failures: Path) -> None:
    from annotary.cli._output import counts, tell

    failed_before = labelled.failed_before + placed.failed_before
    outcome = type(labelled)(
        *(labelled.done, labelled.failed + placed.failed, labelled.done_before, failed_before)
    )
    tell(counts(outcome, "labelled", seconds, failures))


def _print(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """How many images each label has in each part; and which labels have none, or too few."""
    from annotary.cli._output import tell

    found: Mapping[str, Mapping[str, int]] = summary["counts"]
    if as_json:
        click.echo(json.dumps(summary))
        return
    totals = {label: sum(given.values()) for label, given in found.items()}
    shown = [label for label in found if totals[label]]
    rest = len(shown) - MOST
    if rest > 0:
        shown = sorted(shown, key=lambda label: -totals[label])[:MOST]
    for row in _aligned(_rows(summary, shown)):
        click.echo(row)
    if rest > 0:
        click.echo(f"and {rest:,} with fewer images, in dataset.json")
    if summary["task"] == "detect":
        _tell_boxes(summary)
    elif summary["unsure"]:
        kept = "kept in unsure" if summary["unsure_images"] == "keep" else "left out"
        click.echo(f"{summary['unsure']:,} below the threshold, {kept}")
    empty = [label for label, total in totals.items() if not total]
    if empty:
        tell(f"labels without an image: {named(empty)}")
    few = [label for label, given in found.items() if totals[label] and not all(given.values())]
    if few and summary["task"] == "detect":
        tell(f"labels that are not in every part: {named(few)}")
    elif few:
        tell(f"labels with too few images to be in every part: {named(few)}")


def _rows(summary: Mapping[str, Any], labels: Sequence[str]) -> list[list[str]]:
    """The images of some labels in each part, and of boxes how many there are."""
    from annotary.cli._output import one_line

    parts, found = list(summary["split"]["shares"]), summary["counts"]
    rows = [["", *parts, "all"]]
    rows += [[one_line(label), *(f"{found[label][part]:,}" for part in parts)] for label in labels]
    for row, label in zip(rows[1:], labels, strict=True):
        row.append(f"{sum(found[label].values()):,}")
    in_parts = summary.get("parts") or {
        part: sum(given[part] for given in found.values()) for part in parts
    }
    rows.append(["all", *(f"{in_parts[part]:,}" for part in parts), f"{summary['images']:,}"])
    if "boxes" in summary:
        totals = {label: sum(given.values()) for label, given in summary["boxes"].items()}
        rows[0].append("boxes")
        for row, label in zip(rows[1:], labels, strict=False):
            row.append(f"{totals[label]:,}")
        rows[-1].append(f"{sum(totals.values()):,}")
    return rows


def _tell_boxes(summary: Mapping[str, Any]) -> None:
    """What has no line of the table."""
    if summary["backgrounds"]:
        kept = "kept as background" if summary["backgrounds_images"] == "keep" else "left out"
        click.echo(f"{summary['backgrounds']:,} without a box, {kept}")
    if summary["turned"]:
        click.echo(f"{summary['turned']:,} turned upright, as their EXIF says")
    if summary["empty_boxes"]:
        click.echo(f"{summary['empty_boxes']:,} boxes left out, as nothing of them is in the image")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        yield "  ".join([row[0].ljust(widths[0]), *numbers])
