"""What images are labelled with: zero-shot tasks that keep what is below the thresholds, too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from annotary.datasets._dataset import Description
from annotary.datasets._known import FLOOR
from annotary.errors import UsageError
from annotary.tasks import Task
from annotary.tasks.calibration import Calibration
from annotary.tasks.encoding import DualEncoder
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.text_cache import TextCache
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions

LOWEST_KEPT = 0.05
"""Boxes with this score are written down, however high the thresholds are; so others can be tried without the network.
Below a threshold that is lower still, none is."""

MOST_KEPT = 5
"""Labels of an image that are written down where `top` does not say how many."""


class LabelTask(NamedTuple):
    """How images are labelled.

    Attributes:
        task: Gives the best labels of an image, whatever the thresholds are.
        description: What the dataset is of; it holds the thresholds.
    """

    task: ZeroShot
    description: Description


class BoxTask(NamedTuple):
    """How boxes are found.

    Attributes:
        task: Gives all boxes of an image from some score on.
        description: What the dataset is of; it holds the thresholds.
    """

    task: Task
    description: Description


def lowest_kept(thresholds: Iterable[float]) -> float:
    """Down to which score 0..1 boxes are written down.

    Args:
        thresholds: Of all labels, 0..1.
    """
    return min(LOWEST_KEPT, *thresholds)


def box_task(
    task: Task,
    labels: LabelSet,
    thresholds: Mapping[str, float],
    *,
    settings: Mapping[str, Any],
    compose_threshold: float = 0.7,
) -> BoxTask:
    """The task of finding boxes, and what it makes.

    Args:
        task: Gives the boxes of an image from `lowest_kept` on.
        labels: What is looked for.
        thresholds: Label to the score 0..1 from which on a box of it counts; every label has one.
        settings: What boxes depend on: the task's own settings, weights, decoding.
        compose_threshold: From which score 0..1 on a classifier is believed what is in a box, where there is one.
    """
    description = Description(
        classes=labels.names,
        model=task.source,
        prompts={label.name: label.prompts for label in labels.classes},
        thresholds=dict(thresholds),
        settings={
            **settings,
            "task": "detect",
            "model": task.source,
            "thresholds": None,
            FLOOR: lowest_kept(thresholds.values()),
        },
        task="detect",
        compose_threshold=compose_threshold,
    )
    return BoxTask(task, description)


def label_task(
    model: DualEncoder,
    labels: LabelSet,
    options: ZeroShotOptions,
    *,
    settings: Mapping[str, Any],
    calibration: Calibration | None = None,
    thresholds: Mapping[str, float] | None = None,
    cache: TextCache | None = None,
) -> LabelTask:
    """The task of labelling, and what it makes.

    Args:
        model: Embeds images and texts.
        labels: What is offered.
        options: Its thresholds are applied to the written labels, not by the task.
        settings: What labels depend on beside labels and options: weights, decoding.
        calibration: Corrects the scores.
        thresholds: Label to threshold 0..1, before those of the labels and the calibration.
        cache: Remembers the vectors of texts between runs.

    Raises:
        UsageError: A threshold is for no label, or the calibration is that of another model.
    """
    names = (*labels.names, *([] if labels.none_label is None else [labels.none_label]))
    told = dict(thresholds or {})
    if unknown := [name for name in told if name not in names]:
        raise UsageError(f"a threshold is for {unknown[0]!r}, which is no label")
    learned = {} if calibration is None else calibration.thresholds
    of_classes = {label.name: label.threshold for label in labels.classes}
    chosen = {}
    for name in names:
        known = (told.get(name), of_classes.get(name), options.threshold, learned.get(name))
        chosen[name] = float(next((value for value in known if value is not None), 0.0))
    bare = replace(options, threshold=None, top=options.top or MOST_KEPT)
    task = ZeroShot(
        model,
        labels,
        bare,
        calibration=calibration,
        thresholds=dict.fromkeys(names, 0.0),
        cache=cache,
    )
    description = Description(
        classes=names,
        model=model.card.id,
        prompts={label.name: label.prompts for label in labels.classes},
        thresholds=chosen,
        settings={"model": task.source, **settings, **task.settings(), "thresholds": None},
    )
    return LabelTask(task, description)
