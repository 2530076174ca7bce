"""`annotary evaluate detection`: how well boxes are found, on images in which somebody drew all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._evaluating import FILE, give, output_option
from annotary.cli._finding import boxes_options, find_boxes, predictions_options
from annotary.cli._measuring import (
    check_replaceable,
    measuring_options,
    percent,
    report_options,
    table,
)
from annotary.cli._options import SectionedCommand, options_of
from annotary.cli._output import one_line, tell
from annotary.errors import UsageError
from annotary.tasks.queries import QueryOptions

if TYPE_CHECKING:
    from annotary.evaluation.detection import DetectionResult

MOST_LABELS = 10
"""Labels that are shown."""

_NAMES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ap_rare": "AP rare",
    "ap_common": "AP common",
    "ap_frequent": "AP frequent",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}


@click.command("detection", cls=SectionedCommand, short_help="Compare boxes with drawn ones.")
@click.argument("dataset", type=FILE, metavar="DATASET")
@predictions_options
@click.option(
    "--model",
    metavar="NAME",
    help="Find the boxes now: a name of `annotary models`, hf:OWNER/NAME or dir:PATH.",
)
@options_of(QueryOptions)
@boxes_options
@click.option(
    "--text-cache/--no-text-cache",
    default=True,
    help="Remember the queries of texts between runs.",
)
@output_option
@report_options
@measuring_options
def command(dataset: Path, **values: Any) -> None:
    """Compare boxes with those that somebody drew in the images of DATASET.

    DATASET is the JSON of COCO (images, categories, annotations with bbox) or of LVIS, whose own rules are followed, or
    the folder of a dataset of YOLO (data.yaml) or Pascal VOC (Annotations). With --model the labels of DATASET are
    looked for, unless others are told.
    """
    click.get_current_context().exit(_detection(dataset, values))


def _detection(dataset: Path, values: dict[str, Any]) -> int:
    from annotary.evaluation.box_files import read_drawn
    from annotary.evaluation.detection import measure_detection

    check_replaceable(values["output"], "evaluate detection")
    if values["predictions"] is not None and values["model"] is not None:
        raise UsageError("--predictions and --model are two ways to the same boxes; choose one")
    drawn = read_drawn(dataset, folder=values["images"], split=values["split"])
    finding = find_boxes(drawn, values, model=values["model"])
    result = measure_detection(drawn, finding.found.boxes)
    report = {
        "command": "evaluate detection",
        "dataset": str(dataset),
        "rules": "lvis" if drawn.is_lvis else "coco",
        **finding.told,
        "images": len(drawn.images),
        "labels": len(drawn.labels),
        "boxes": len(drawn.boxes),
        "found": len(finding.found.boxes),
        **finding.left_out,
        "metrics": result.metrics,
        "per_label": _per_label(result),
        "failures": [failure.to_json() for failure in finding.failures],
    }
    give(report, values, lambda: _show(report))
    finding.tell()
    return 1 if finding.failures else 0


def _per_label(result: DetectionResult) -> list[dict[str, Any]]:
    return [one._asdict() for one in result.labels]


def _show(report: Mapping[str, Any]) -> None:
    by = report.get("model") or report["predictions"]
    told = f"{report['images']:,} images, {report['boxes']:,} boxes of {report['labels']:,} labels"
    click.echo(one_line(f"{report['dataset']}: {told}, {report['found']:,} found, {by}") + "\n")
    rows = [("", "")]
    for name, value in report["metrics"].items():
        rows.append((_NAMES.get(name, f"AR {name.removeprefix('ar_')}"), percent(value)))
    click.echo(table(rows[1:], numbers=[1]))
    _show_labels(report)


def _show_labels(report: Mapping[str, Any]) -> None:
    """The labels, or the worst of many; with the threshold at which F1 is best."""
    seen = [one for one in report["per_label"] if one["drawn"]]
    if not seen:
        tell("no box was drawn, so nothing can be found")
        return
    worst = sorted(seen, key=lambda one: one["ap"] or 0.0)[:MOST_LABELS]
    few = len(seen) <= MOST_LABELS
    head = ("label" if few else "worst labels", "drawn", "found", "AP", "AP50")
    rows: list[Sequence[str]] = [(*head, "threshold", "F1", "precision", "recall")]
    for one in seen if few else worst:
        counts = f"{one['drawn']:,}", f"{one['found']:,}"
        threshold = "-" if one["threshold"] is None else f"{one['threshold']:.4f}"
        shares = [percent(one[key]) for key in ("ap", "ap50", "f1", "precision", "recall")]
        rows.append((one_line(one["label"]), *counts, *shares[:2], threshold, *shares[2:]))
    click.echo("\n" + table(rows, numbers=range(1, 9)))
    tell("threshold: the score from which on F1 of a label is best, chosen on these very images")
