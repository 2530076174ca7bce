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
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import without_sidecars
from annotary.datasets import (
    Building,
    Dataset,
    DatasetOptions,
    Labelling,
    LabelTask,
    check_format,
    formats,
    label_task,
)
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.pipeline.local import PipelineOptions
from annotary.runtime import RuntimeOptions
from annotary.sources import SourceOptions
from annotary.tasks.label_sets import LabelOptions, shortened
from annotary.tasks.zero_shot import ZeroShotOptions

if TYPE_CHECKING:
    from annotary.pipeline import Outcome

MOST = 100
"""Labels in the table that is printed; of more those with the most images are."""

ALWAYS_WINS = (
    "one label alone always wins: say --none-label NAME, or --multi-label with --threshold"
)
"""Told where there is one label, and nothing that it competes with."""

FEW = 10
"""Labels that are named in a line; of more the first are."""


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
    default="folders",
    show_default=True,
    metavar="NAME",
    help=f"What is made: {', '.join(formats())}.",
)
@click.option(
    "--task",
    type=click.Choice(["classify", "detect"]),
    default="classify",
    show_default=True,
    help="What images are labelled with: one label each. (Boxes, detect, are still to come.)",
)
@model_option
@options_of(LabelOptions, ZeroShotOptions, DatasetOptions)
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

    The originals are not touched. A run that was stopped goes on when the same command is given again, and images that
    were added since are added; none changes its part. Images that cannot be read are listed in failures.jsonl.
    """
    click.get_current_context().exit(_label(paths, values))


def _label(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    from annotary.cli._output import tell
    from annotary.sources import can_be_counted, open_sources

    # Whatever can be wrong is found before anything is written.
    if values["task"] == "detect":
        raise UsageError("--task detect is still to come; --task classify gives one label an image")
    check_format(values["form"])
    paths = without_sidecars(paths)
    source_options, decode_options = made(SourceOptions, values), made(DecodeOptions, values)
    pipeline_options, options = made(PipelineOptions, values), made(DatasetOptions, values)
    items = open_sources(paths, source_options)
    described = _described(values, decode_options)
    if described.task.truncated and not values["quiet"]:
        named = _named([shortened(label) for label in described.task.truncated])
        tell(f"longer than {described.task.source} reads, so the end is left out: {named}")
    if described.task.always_wins and not values["quiet"]:
        tell(ALWAYS_WINS)
    items = chain(list(islice(items, 1)), items)  # a shard may be empty
    count = None
    if can_be_counted(paths):
        count = lambda: sum(1 for _ in open_sources(paths, source_options))  # noqa: E731
    with Dataset(
        values["output"],
        values["form"],
        options,
        described.description,
        paths,
        retry_failed=values["retry_failed"],
    ) as dataset:
        with Labelling(
            *(dataset, items, described.task),
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


def _described(values: Mapping[str, Any], decode_options: DecodeOptions) -> LabelTask:
    """How images are labelled, and what is made."""
    from annotary.tasks.calibration import read_calibration
    from annotary.tasks.encoding import dual_encoder
    from annotary.tasks.label_sets import read_labels
    from annotary.tasks.zero_shot import read_thresholds

    options, labels = made(ZeroShotOptions, values), read_labels(made(LabelOptions, values))
    corrected, cuts = options.calibration, options.label_thresholds
    calibration = None if corrected is None else read_calibration(corrected)
    thresholds = None if cuts is None else read_thresholds(cuts)
    found = loaded(values["model"], made(RuntimeOptions, values))
    settings = {
        "command": "label",
        "weights": found.weights,
        "reduce": decode_options.reduce,
        "max_pixels": decode_options.max_pixels,
        "transparency": decode_options.transparency,
    }
    return label_task(
        dual_encoder(found.model),
        labels,
        options,
        settings=settings,
        calibration=calibration,
        thresholds=thresholds,
        cache=found.text_cache() if values["text_cache"] else None,
    )


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
    from annotary.cli._output import one_line, tell

    found: Mapping[str, Mapping[str, int]] = summary["counts"]
    if as_json:
        click.echo(json.dumps(summary))
        return
    parts = list(summary["split"]["shares"])
    totals = {label: sum(given.values()) for label, given in found.items()}
    shown = {label: given for label, given in found.items() if totals[label]}
    rest = len(shown) - MOST
    if rest > 0:
        most = sorted(shown, key=lambda label: -totals[label])[:MOST]
        shown = {label: shown[label] for label in most}
    rows = [["", *parts, "all"]]
    rows += [
        [one_line(label), *(f"{given[part]:,}" for part in parts), f"{totals[label]:,}"]
        for label, given in shown.items()
    ]
    every = (f"{sum(given[part] for given in found.values()):,}" for part in parts)
    rows.append(["all", *every, f"{summary['images']:,}"])
    for row in _aligned(rows):
        click.echo(row)
    if rest > 0:
        click.echo(f"and {rest:,} with fewer images, in dataset.json")
    if summary["unsure"]:
        kept = "kept in unsure" if summary["unsure_images"] == "keep" else "left out"
        click.echo(f"{summary['unsure']:,} below the threshold, {kept}")
    empty = [label for label, total in totals.items() if not total]
    if empty:
        tell(f"labels without an image: {_named(empty)}")
    few = [label for label, given in found.items() if totals[label] and not all(given.values())]
    if few:
        tell(f"labels with too few images to be in every part: {_named(few)}")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        yield "  ".join([row[0].ljust(widths[0]), *numbers])


def _named(labels: Sequence[str]) -> str:
    more = f", and {len(labels) - FEW:,} more" if len(labels) > FEW else ""
    return ", ".join(labels[:FEW]) + more
