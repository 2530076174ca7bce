"""`annotary calibrate --task detect`: from which score on boxes of each label are given."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from annotary.cli._finding import find_boxes
from annotary.cli._measuring import percent, print_report, table
from annotary.errors import NothingToDo, UsageError

if TYPE_CHECKING:
    from annotary.evaluation.box_files import DrawnBoxes
    from annotary.evaluation.detection_thresholds import ThresholdFit

PARTS = 10
"""Into which images are dealt, to measure on what was not fitted on."""

MOST_LABELS = 20
"""Labels that are shown."""

_SUFFIX = ".csv"


def calibrate_detection(
    dataset: Path, values: Mapping[str, Any], options: Mapping[str, Any]
) -> int:
    """Choose thresholds of labels on boxes that somebody drew.

    Args:
        dataset: COCO JSON, or the folder of a dataset of YOLO or Pascal VOC.
        values: The values of the options.
        options: `minimum_boxes` and `seed`.

    Raises:
        UsageError: Options or files make no sense.
        NothingToDo: No box that was found is right.
    """
    from annotary.evaluation.box_files import read_drawn
    from annotary.evaluation.box_matching import match_boxes
    from annotary.evaluation.detection_thresholds import fit_box_thresholds

    _check_output(values["output"])
    drawn = read_drawn(dataset, folder=values["images"], split=values["split"])
    finding = find_boxes(drawn, values, model=values["model"])
    outside = [box.score for box in finding.found.boxes if not 0.0 <= box.score <= 1.0]
    if outside:
        raise UsageError(f"scores must be in 0..1 to have thresholds, but one is {outside[0]!r}")
    matches = match_boxes(drawn, finding.found.boxes)
    if not matches.are_right.any():
        raise NothingToDo(f"no box that was found is right, of {len(finding.found.boxes):,}")
    fit = fit_box_thresholds(
        matches, minimum_boxes=options["minimum_boxes"], parts=PARTS, seed=options["seed"]
    )
    report = _report(dataset, drawn, fit, finding.found.called, options) | {
        **finding.told,
        **finding.left_out,
        "failures": [failure.to_json() for failure in finding.failures],
    }
    if values["output"] is not None:
        _write(values["output"], report["thresholds"])
    if values["as_json"]:
        print_report(report)
    else:
        _show(report)
    _tell(report, values)
    finding.tell()
    return 1 if finding.failures else 0


def _report(
    dataset: Path,
    drawn: DrawnBoxes,
    fit: ThresholdFit,
    called: Mapping[int, str],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What is told.

    Args:
        dataset: The truth.
        drawn: Its boxes.
        fit: What was learned.
        called: What the detector calls labels, by place; those it never found are not asked for, perhaps.
        options: `minimum_boxes` and `seed`.
    """
    from annotary.evaluation.box_files import counts_of

    notes = []
    counts = counts_of(drawn.boxes, len(drawn.labels))
    few = [
        name
        for name, count in zip(drawn.labels, counts, strict=True)
        if count < options["minimum_boxes"]
    ]
    if few:
        notes.append(
            f"labels with fewer than {options['minimum_boxes']} boxes have the threshold of all: {_listed(few)}"
        )
    each = fit.is_helpful
    if not each:
        notes.append(
            "thresholds of their own did no better on other images, so all labels have one"
        )
    thresholds = fit.thresholds if each else [fit.single] * len(drawn.labels)
    is_own = fit.is_own if each else [False] * len(drawn.labels)
    return {
        "task": "detect",
        "dataset": str(dataset),
        "images": len(drawn.images),
        "labels": len(drawn.labels),
        "boxes": sum(counts),
        "minimum_boxes": options["minimum_boxes"],
        "seed": options["seed"],
        "parts": fit.parts,
        "single": float(fit.single),
        "thresholds": {
            called[place]: float(value) for place, value in enumerate(thresholds) if place in called
        },
        "per_label": [
            {"label": name, "boxes": count, "threshold": float(value), "own": bool(own)}
            for name, count, value, own in zip(
                drawn.labels, counts, thresholds, is_own, strict=True
            )
        ],
        "measured": {name: dict(one) for name, one in fit.measured.items()},
        "notes": notes,
    }


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _check_output(path: Path | None) -> None:
    """Refuse to write over anything but thresholds, and what could not be read back.

    Raises:
        UsageError: The file is something else.
    """
    from annotary.tasks.zero_shot import read_thresholds

    if path is None:
        return
    if path.suffix.lower() != _SUFFIX:
        raise UsageError(
            f"--output {path}: thresholds of boxes are a table label,threshold, whose name ends in {_SUFFIX}"
        )
    if path.exists():
        try:
            read_thresholds(path)
        except UsageError as error:
            raise UsageError(f"{path} is there already and holds no thresholds") from error


def _write(path: Path, thresholds: Mapping[str, float]) -> None:
    from annotary.sinks import write_atomically

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "threshold"])
    writer.writerows([name, f"{value:.10g}"] for name, value in thresholds.items())
    write_atomically(path, text.getvalue().encode("utf-8"))


def _show(report: Mapping[str, Any]) -> None:
    from annotary.cli._output import one_line

    by = report.get("model") or report["predictions"]
    told = f"{report['images']:,} images, {report['boxes']:,} boxes of {report['labels']:,} labels"
    click.echo(one_line(f"{report['dataset']}: {told}, {by}") + "\n")
    measured = report["measured"]
    rows = [("", "one threshold", "one each")]
    for key, where in (("fitted", "the same images"), ("held_out", "images not fitted on")):
        one, each = measured.get(f"{key}_single"), measured.get(f"{key}_each")
        if one is None:
            continue
        for name, called in (
            ("macro_f1", "F1, mean of labels"),
            ("f1", "F1 of all boxes"),
            ("precision", "precision"),
            ("recall", "recall"),
        ):
            rows.append((f"{called}, {where}", percent(one[name]), percent(each[name])))
    click.echo(table(rows, numbers=[1, 2]) + "\n")
    labels = sorted(report["per_label"], key=lambda one: -one["boxes"])
    rows = [("label", "boxes", "threshold")]
    rows += [
        (one_line(one["label"]), f"{one['boxes']:,}", f"{one['threshold']:.4f}")
        for one in labels[:MOST_LABELS]
        if one["own"]
    ]
    rows.append(("all others" if len(rows) > 1 else "all labels", "", f"{report['single']:.4f}"))
    click.echo(table(rows, numbers=[1, 2]))


def _tell(report: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    from annotary.cli._output import tell

    for note in report["notes"]:
        tell(note)
    if values["output"] is None:
        tell("nothing is written without --output FILE")
    else:
        told = f"--label-thresholds {values['output']} --threshold {report['single']:g}"
        tell(f"for `annotary detect`: {told}")
