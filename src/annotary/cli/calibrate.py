"""`annotary calibrate`: learn from labelled images how sure a model may be of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt

from annotary.cli._annotating import loaded, model_option
from annotary.cli._calibrate_detection import calibrate_detection
from annotary.cli._finding import predictions_options
from annotary.cli._measuring import (
    ImageVectors,
    measuring_options,
    print_report,
    report_options,
    table,
    templates_of,
    write_report,
)
from annotary.cli._options import SectionedCommand, given, made, options_of
from annotary.errors import NothingToDo, UsageError
from annotary.evaluation.calibration import CalibrationOptions
from annotary.runtime import RuntimeOptions
from annotary.tasks.detection import DetectionOptions
from annotary.tasks.label_sets import LabelOptions

if TYPE_CHECKING:
    from annotary.evaluation.calibration import Fit
    from annotary.evaluation.labelled import LabelledImages
    from annotary.records import Failure, Item
    from annotary.tasks.calibration import Calibration
    from annotary.tasks.label_sets import LabelSet
    from annotary.tasks.zero_shot import ZeroShot

_FILE = click.Path(path_type=Path)
_COLUMNS = ("image_column", "label_column")
_NO_BOXES = ("--labels-from", "--none-label", "--background", "--thresholds", "--target-precision")
"""Options that mean nothing for boxes."""

MINIMUM_BOXES = 5
"""Boxes from which on a label has a threshold of its own."""

_WAYS = ("labels", "labels_file", "ontology", "labels_from")


@click.command(
    "calibrate", cls=SectionedCommand, short_help="Learn from labelled images how sure to be."
)
@click.argument("dataset", type=_FILE, metavar="DATASET")
@click.option(
    "--task",
    type=click.Choice(["classify", "detect"]),
    default="classify",
    show_default=True,
    help="What shall be surer: labels of images, or boxes.",
)
@model_option
@predictions_options
@click.option(
    "--output",
    type=_FILE,
    metavar="FILE",
    help="Write what was learned there: for `annotary classify --calibration` or `annotary detect --label-thresholds`.",
)
@click.option(
    "--multi-label",
    is_flag=True,
    help="Score each label by itself, as `annotary classify --multi-label` and `annotary detect --multi-label` do.",
)
@click.option(
    "--minimum-boxes",
    type=click.IntRange(min=1),
    default=MINIMUM_BOXES,
    show_default=True,
    help="Labels with fewer boxes take the threshold that is best for all.",
)
@options_of(LabelOptions, CalibrationOptions)
@options_of(DetectionOptions, without=("threshold", "label_thresholds", "top", "multi_label"))
@click.option("--image-column", metavar="NAME", help="Column of a table that holds the images.")
@click.option("--label-column", metavar="NAME", help="Column of a table that holds the labels.")
@click.option(
    "--text-cache/--no-text-cache",
    default=True,
    help="Remember the vectors of texts between runs.",
)
@report_options
@measuring_options
def command(dataset: Path, **values: Any) -> None:
    """Learn from the labelled images of DATASET how sure a model may be of labels, and when to give them.

    DATASET is a folder with a folder for each class, or a table (.csv, .tsv, .jsonl, .parquet) with an image and its
    labels in each row. Without labels of your own those of the dataset are taken. A few hundred images do; a model is
    never made worse by it. With --task detect, DATASET has boxes (COCO, YOLO, Pascal VOC), and what is learned is a
    threshold for each label.
    """
    context = click.get_current_context()
    _check_task(values)
    if values["task"] == "classify":
        context.exit(_calibrate(dataset, values))
    options = {"minimum_boxes": values["minimum_boxes"], "seed": values["seed"]}
    context.exit(calibrate_detection(dataset, values, options))


def _check_task(values: Mapping[str, Any]) -> None:
    """Refuse options of the other task.

    Raises:
        UsageError: There are some.
    """
    if values["task"] == "detect":
        wrong = [
            flag for flag in given(values, LabelOptions, CalibrationOptions) if flag in _NO_BOXES
        ]
        wrong += [f"--{name.replace('_', '-')}" for name in _COLUMNS if values[name] is not None]
    else:
        wrong = [flag for flag in given(values, DetectionOptions) if flag != "--multi-label"]
        wrong += [
            f"--{name}" for name in ("predictions", "images", "split") if values[name] is not None
        ]
        wrong += ["--minimum-boxes"] if values["minimum_boxes"] != MINIMUM_BOXES else []
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: not with --task {values['task']}")


def _calibrate(dataset: Path, values: dict[str, Any]) -> int:
    from annotary.cli._output import tell
    from annotary.evaluation.calibration import Scale, calibrate
    from annotary.evaluation.labelled import LabelledImages
    from annotary.tasks.calibration import Calibration
    from annotary.tasks.encoding import dual_encoder
    from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions

    _check_output(values["output"])
    options = made(CalibrationOptions, values)
    images = LabelledImages(
        dataset,
        image_column=values["image_column"],
        label_column=values["label_column"],
        is_multi_label=values["multi_label"],
    )
    labels = _labels(images, values)
    place = _places(images, labels)
    found = loaded(values["model"], made(RuntimeOptions, values))
    model = dual_encoder(found.model)
    cache = found.text_cache() if values["text_cache"] else None
    zero_shot = ZeroShotOptions(multi_label=values["multi_label"])
    task = ZeroShot(model, labels, zero_shot, cache=cache)
    work: ImageVectors[tuple[int, ...]] = ImageVectors(model, values)
    offered = _Offered(images, place, is_multi_label=values["multi_label"])
    blocks = list(work.blocks(offered, images.count))
    left_out = images.unlabelled + offered.left_out
    if left_out:
        tell(f"images with none of the labels, which are left out: {left_out:,}")
    if not blocks:
        raise NothingToDo(f"no image of {dataset} could be read")
    targets = np.zeros((sum(len(block.known) for block in blocks), len(labels.names)), np.bool_)
    for row, own in enumerate(own for block in blocks for own in block.known):
        targets[row, list(own)] = True
    competes = model.similarity.kind == "softmax" and not values["multi_label"]
    logits = _Logits(np.concatenate([block.vectors for block in blocks]), task)
    try:
        fit = calibrate(logits, targets, Scale(len(labels.names), competes=competes), options)
    except MemoryError as error:
        raise UsageError(f"{error}; say --thresholds none") from error
    measured = {
        "dataset": str(dataset),
        "images": len(targets),
        "left_out": left_out,
        "failed": len(work.failures),
        "labels": len(labels.names),
        "labels_without_images": int((~targets.any(axis=0)).sum()),
        "seed": options.seed,
        "before": _plain(asdict(fit.before)),
        "after": _plain(asdict(fit.after)),
        "notes": [*fit.notes, *_unreachable(fit, labels)],
    }
    thresholds = {} if fit.thresholds is None else zip(labels.names, fit.thresholds, strict=True)
    calibration = Calibration(
        *(model.card.id, values["multi_label"], fit.temperature, fit.bias),
        {name: round(float(value), 6) for name, value in dict(thresholds).items()},
        measured,
    )
    _give(calibration, values)
    work.tell_failures()
    return 1 if work.failures else 0


class _Logits:
    """The logits of images, worked out when they are asked for: those of many labels need not lie in memory."""

    def __init__(self, vectors: npt.NDArray[np.float32], task: ZeroShot) -> None:
        self._vectors = vectors
        self._task = task

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: slice, /) -> npt.NDArray[np.float32]:
        return self._task.logits(self._vectors[rows])


class _Offered:
    """Images with the places of their labels among those that are offered.

    Args:
        images: All of them.
        place: Label of the dataset to its place.
        is_multi_label: Whether an image may have none of them.

    Attributes:
        left_out: Images of other labels, in the last pass.
    """

    def __init__(
        self, images: LabelledImages, place: Mapping[str, int], *, is_multi_label: bool
    ) -> None:
        self._images, self._place, self._is_multi_label = images, place, is_multi_label
        self.left_out = 0

    def __iter__(self) -> Iterator[tuple[Item | Failure, tuple[int, ...]]]:
        self.left_out = 0
        for item, labels in self._images:
            own = tuple(self._place[label] for label in labels if label in self._place)
            if own or self._is_multi_label:
                yield item, own
            else:
                self.left_out += 1


def _labels(images: LabelledImages, values: Mapping[str, Any]) -> LabelSet:
    """The labels that were told, or those of the dataset.

    Raises:
        UsageError: They make no sense.
    """
    from annotary.evaluation.class_names import named_classes
    from annotary.tasks.label_sets import LabelSet, read_labels

    options = made(LabelOptions, values)
    if options.labels_from is not None:
        raise UsageError(
            "--labels-from is for images with labels of their own; tell one set of labels"
        )
    if any(getattr(options, way) is not None for way in _WAYS):
        return read_labels(options)
    classes, _ = named_classes(images.classes, None, templates_of(values))
    try:
        return LabelSet(classes, options.background, options.none_label)
    except ValueError as error:
        raise UsageError(f"--none-label: {error}") from error


def _places(images: LabelledImages, labels: LabelSet) -> dict[str, int]:
    """The place of each label of the dataset that is offered.

    Raises:
        UsageError: None is.
    """
    from annotary.cli._output import tell

    place = {name: i for i, name in enumerate(labels.names)}
    found = {
        name: place[told]
        for name in images.classes
        for told in (name, name.replace("_", " "))
        if told in place
    }
    others = [name for name in images.classes if name not in found]
    if not found:
        raise UsageError(
            f"none of the dataset's labels ({', '.join(others[:5])}, ...) is one of those offered"
            f" ({', '.join(labels.names[:5])}, ...)"
        )
    if others:
        named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        tell(f"labels of the dataset that are not offered: {named}")
    return found


def _check_output(path: Path | None) -> None:
    """Refuse to write over anything but an earlier calibration."""
    from annotary.tasks.calibration import read_calibration

    if path is not None and path.exists():
        try:
            read_calibration(path)
        except UsageError as error:
            raise UsageError(f"{path} is there already and is no calibration") from error


def _unreachable(fit: Fit, labels: LabelSet) -> list[str]:
    if not fit.unreachable:
        return []
    named = ", ".join(labels.names[place] for place in fit.unreachable[:5])
    more = ", ..." if len(fit.unreachable) > 5 else ""
    return [f"no threshold gives so much precision, so they are never given: {named}{more}"]


def _plain(measured: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in measured.items() if value is not None}


def _give(calibration: Calibration, values: Mapping[str, Any]) -> None:
    """Write the calibration where it was asked for, and print it."""
    from annotary.cli._output import one_line, tell

    if values["output"] is not None:
        write_report(values["output"], calibration.to_json())
    if values["as_json"]:
        print_report(calibration.to_json())
        return
    measured = calibration.measured
    bias = f", bias {calibration.bias:+.3f}" if calibration.bias else ""
    cuts = f", {len(calibration.thresholds):,} thresholds" if calibration.thresholds else ""
    click.echo(
        f"{one_line(measured['dataset'])}: {measured['images']:,} images, {measured['labels']:,} labels,"
        f" {calibration.model}\ntemperature {calibration.temperature:.3f}{bias}{cuts}\n"
    )
    rows = [("", "before", "after")]
    for name, before in measured["before"].items():
        after = measured["after"].get(name)
        told = {"nll": "negative log-likelihood", "macro_f1": "F1, mean of labels"}.get(name)
        told = told or name.replace("_", " ").replace(
            "macro precision", "precision, mean of labels"
        )
        rows.append((told, _number(name, before), "-" if after is None else _number(name, after)))
    click.echo(table(rows, numbers=[1, 2]))
    for note in measured["notes"]:
        tell(note)
    if values["output"] is None:
        tell("nothing is written without --output FILE")


def _number(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "nll" else f"{value:.1%}"
