"""What commands share that compare found boxes with drawn ones: where the found ones come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from annotary.cli._annotating import loaded
from annotary.cli._evaluating import FILE
from annotary.cli._options import given, made, options_of
from annotary.errors import UsageError
from annotary.runtime import RuntimeOptions
from annotary.tasks.detection import DetectionOptions
from annotary.tasks.queries import QueryOptions

if TYPE_CHECKING:
    from annotary.evaluation.box_files import DrawnBoxes, FoundBoxes
    from annotary.records import Failure
    from annotary.tasks.label_sets import LabelSet

Function = TypeVar("Function", bound=Callable[..., Any])

TOP = 300
"""Boxes of an image that are measured, the best: what LVIS allows, and more than COCO looks at of one label."""

_MOST_TOLD = 5
"""Names that are told of many."""

boxes_options = options_of(DetectionOptions, without=("threshold", "label_thresholds", "top"))
"""Which boxes an image gets; all scores are measured, so there are no thresholds."""


def predictions_options(function: Function) -> Function:
    """Give a command the options that say where the boxes and the images are."""
    decorators = (
        click.option(
            "--predictions",
            type=FILE,
            metavar="FILE",
            help="What was found: an output of annotary (JSON Lines, CSV, Parquet, COCO), or COCO results.",
        ),
        click.option(
            "--images",
            type=FILE,
            metavar="FOLDER",
            help="Where names of images start; where the dataset is otherwise.",
        ),
        click.option(
            "--split",
            metavar="NAME",
            help="Which part of a dataset of YOLO or Pascal VOC; val or the like otherwise.",
        ),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


@dataclass(frozen=True)
class Finding:
    """Found boxes and where they come from.

    Attributes:
        found: The boxes.
        told: What a report says of their origin.
        source: The id of the card that found them; empty when nobody knows.
        failures: Images that could not be read.
    """

    found: FoundBoxes
    told: Mapping[str, Any]
    source: str = ""
    failures: Sequence[Failure] = ()

    @property
    def left_out(self) -> dict[str, Any]:
        """What does not count, for a report."""
        return {
            "unknown_images": self.found.unknown_images,
            "unknown_labels": self.found.unknown_labels,
            "other_sizes": self.found.other_sizes,
        }

    def tell(self) -> None:
        """What does not count, on standard error."""
        from annotary.cli._output import tell

        for failure in self.failures[:_MOST_TOLD]:
            tell(f"{failure.image}: {failure.message}")
        if self.failures:
            told = f"{len(self.failures):,}"
            tell(f"images that could not be read, in which nothing was found: {told}")
        for names, what in (
            (self.found.unknown_images, "images that the truth does not have, left out"),
            (list(self.found.unknown_labels), "labels that the truth does not have, left out"),
            (self.found.other_sizes, "images that had another size than the truth says"),
        ):
            if names:
                more = ", ..." if len(names) > _MOST_TOLD else ""
                tell(f"{what}: {len(names):,} ({', '.join(names[:_MOST_TOLD])}{more})")


def find_boxes(drawn: DrawnBoxes, values: Mapping[str, Any], *, model: str | None) -> Finding:
    """Found boxes, of a file or of a model that is asked now.

    Args:
        drawn: The truth.
        values: The values of the options.
        model: Its name, where there is no file.

    Raises:
        UsageError: Nothing says where they come from, or a file makes no sense.
    """
    from annotary.evaluation.box_files import read_found

    predictions = values["predictions"]
    if predictions is not None:
        told = [*given(values, QueryOptions, DetectionOptions)]
        if told:
            raise UsageError(f"{', '.join(told)}: not with --predictions, as the boxes are there")
        found = read_found(predictions, drawn)
        return Finding(found, {"predictions": str(predictions)}, found.source)
    if model is None:
        raise UsageError("say which boxes are measured: --predictions FILE or --model NAME")
    return _found_now(drawn, values, model)


def _found_now(drawn: DrawnBoxes, values: Mapping[str, Any], name: str) -> Finding:
    """Boxes that a model finds now."""
    from annotary.cli._measuring_records import annotated
    from annotary.cli._output import tell
    from annotary.evaluation.box_files import found_in
    from annotary.tasks.detection import Detection
    from annotary.tasks.locating import detector

    labels = _labels(drawn, values)
    model = loaded(name, made(RuntimeOptions, values))
    task = Detection(
        detector(model.model),
        labels,
        made(DetectionOptions, {**values, "threshold": 0.0, "label_thresholds": None, "top": TOP}),
        # Labels may bring thresholds of their own, which would hide what is measured.
        thresholds=dict.fromkeys(labels.names, 0.0),
        cache=model.text_cache() if values["text_cache"] else None,
    )
    if task.truncated:
        cut = ", ".join(task.truncated[:_MOST_TOLD]) + (", ..." if len(task.truncated) > 5 else "")
        tell(f"longer than {task.source} reads, so the end is left out: {cut}")
    records, failures = annotated(drawn.items(), len(drawn.images), task, "detecting", values)
    told = {"model": task.source, "weights": model.weights, "settings": task.settings()}
    return Finding(found_in(records, drawn), told, task.source, failures)


def _labels(drawn: DrawnBoxes, values: Mapping[str, Any]) -> LabelSet:
    """What is looked for: the labels that were told, else those of the truth.

    Raises:
        UsageError: They make no sense.
    """
    from annotary.evaluation.class_names import named_classes
    from annotary.tasks.label_sets import LabelSet
    from annotary.tasks.queries import read_queries, templates_named

    options = made(QueryOptions, values)
    if options.has_labels:
        return read_queries(options)
    try:
        named = () if options.templates is None else templates_named(options.templates)
    except OSError as error:
        raise UsageError(f"--templates {options.templates}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--templates: {error}") from error
    classes, _ = named_classes(drawn.labels, None, named or options.template or ("{}",))
    return LabelSet(classes)
