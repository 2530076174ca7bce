"""How `annotary label` labels images: the task and the dataset that its options tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from annotary.cli._composing import check_compose, composed
from annotary.cli._options import given, made
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.runtime import RuntimeOptions
from annotary.tasks.composing import ComposeOptions
from annotary.tasks.detection import DetectionOptions
from annotary.tasks.label_sets import LabelOptions, shortened
from annotary.tasks.queries import QueryOptions
from annotary.tasks.zero_shot import ZeroShotOptions

if TYPE_CHECKING:
    from annotary.cli._annotating import Loaded
    from annotary.datasets import Description
    from annotary.tasks import Task

Load = Callable[[str, RuntimeOptions], "Loaded"]

SHARED = tuple(
    entry.name
    for entry in fields(DetectionOptions)
    if entry.name in {other.name for other in fields(ZeroShotOptions)}
)
"""Options of classification that mean the same for boxes."""

ALWAYS_WINS = (
    "one label alone always wins: say --none-label NAME, or --multi-label with --threshold"
)
"""Told where there is one label, and nothing that it competes with."""

FEW = 10
"""Labels that are named in a line; of more the first are."""


class Described(NamedTuple):
    """How images are labelled.

    Attributes:
        task: Says what is in them, whatever the thresholds are.
        description: What the dataset is of.
        notes: What a user may not have meant.
    """

    task: Task
    description: Description
    notes: tuple[str, ...]


def described(values: Mapping[str, Any], load: Load) -> Described:
    """How images are labelled, and what is made.

    Args:
        values: Of the command's options.
        load: Loads a model by name.

    Raises:
        UsageError: The options make no sense, or a model cannot do what it is to do.
    """
    return (_boxes if values["task"] == "detect" else _labels)(values, load)


def check_task(values: Mapping[str, Any]) -> None:
    """Refuse options of the other task, before anything is loaded.

    Raises:
        UsageError: There is one.
    """
    if values["task"] == "classify":
        own = {name: value for name, value in values.items() if name not in SHARED}
        flags = [*given(own, DetectionOptions), *given(own, ComposeOptions)]
        others = "classify"
    else:
        kept = {*SHARED, "labels", "labels_file", "ontology", "template", "templates"}
        if values["compose"]:
            kept.add("background")
        own = {name: value for name, value in values.items() if name not in kept}
        flags = [*given(own, LabelOptions), *given(own, ZeroShotOptions)]
        others = "detect"
        check_compose(values)
    if flags:
        raise UsageError(f"{flags[0]} means nothing for --task {others}")


def named(labels: Sequence[str]) -> str:
    """The first labels of a list."""
    more = f", and {len(labels) - FEW:,} more" if len(labels) > FEW else ""
    return ", ".join(labels[:FEW]) + more


def _labels(values: Mapping[str, Any], load: Load) -> Described:
    from annotary.datasets import label_task
    from annotary.tasks.calibration import read_calibration
    from annotary.tasks.encoding import dual_encoder
    from annotary.tasks.label_sets import read_labels
    from annotary.tasks.zero_shot import read_thresholds

    options, labels = made(ZeroShotOptions, values), read_labels(made(LabelOptions, values))
    corrected, cuts = options.calibration, options.label_thresholds
    calibration = None if corrected is None else read_calibration(corrected)
    thresholds = None if cuts is None else read_thresholds(cuts)
    found = load(values["model"], made(RuntimeOptions, values))
    task, description = label_task(
        dual_encoder(found.model),
        labels,
        options,
        settings=_settings(values, found),
        calibration=calibration,
        thresholds=thresholds,
        cache=found.text_cache() if values["text_cache"] else None,
    )
    notes = [*_cut(task.truncated, task.source), *([ALWAYS_WINS] if task.always_wins else [])]
    return Described(task, description, tuple(notes))


def _boxes(values: Mapping[str, Any], load: Load) -> Described:
    from annotary.datasets import box_task, lowest_kept
    from annotary.tasks.detection import Detection
    from annotary.tasks.locating import detector
    from annotary.tasks.queries import read_queries
    from annotary.tasks.zero_shot import read_thresholds

    told = {name: value for name, value in values.items() if value is not None}
    options, labels = made(DetectionOptions, told), read_queries(made(QueryOptions, values))
    cuts = options.label_thresholds
    single = {} if cuts is None else read_thresholds(cuts)
    if unknown := [name for name in single if name not in labels.names]:
        raise UsageError(f"a threshold is for {unknown[0]!r}, which is no label")
    own = {label.name: label.threshold for label in labels.classes if label.threshold is not None}
    thresholds = {**dict.fromkeys(labels.names, options.threshold), **own, **single}
    lowest = lowest_kept(thresholds.values())
    found = load(values["model"], made(RuntimeOptions, values))
    detection = Detection(
        detector(found.model),
        labels,
        replace(options, threshold=lowest, label_thresholds=None),
        thresholds=dict.fromkeys(labels.names, lowest),
        cache=found.text_cache() if values["text_cache"] else None,
    )
    task: Task = detection
    settings, truncated = detection.settings(), detection.truncated
    if values["compose"]:
        both, settings = composed(detection, values, load)
        task, truncated = both, both.truncated
    made_of = box_task(
        task,
        labels,
        thresholds,
        settings={**settings, **_settings(values, found)},
        compose_threshold=values["compose_threshold"],
    )
    return Described(task, made_of.description, tuple(_cut(truncated, task.source)))


def _settings(values: Mapping[str, Any], found: Loaded) -> dict[str, Any]:
    """What labels depend on beside the task: weights and decoding."""
    decoding = made(DecodeOptions, values)
    return {
        "command": "label",
        "weights": found.weights,
        "reduce": decoding.reduce,
        "max_pixels": decoding.max_pixels,
        "transparency": decoding.transparency,
    }


def _cut(truncated: Sequence[str], source: str) -> Iterator[str]:
    if truncated:
        labels = named([shortened(label) for label in truncated])
        yield f"longer than {source} reads, so the end is left out: {labels}"
