"""`annotary annotate`: several tasks for each image that is decoded once."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from annotary.cli._annotating import (
    Annotating,
    Loaded,
    loaded,
    model_option,
    policy_option,
    running_options,
    tag_policy,
)
from annotary.cli._labels import labels_kept
from annotary.cli._options import SectionedCommand, made, options_of
from annotary.cli._writing import writing_options
from annotary.errors import UsageError
from annotary.tasks.label_sets import LabelOptions
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from annotary.records import Record
    from annotary.runtime import RuntimeOptions
    from annotary.tasks import Task
    from annotary.tasks.encoding import Vectors

TASKS = ("tag", "classify", "embed")


@dataclass(frozen=True, slots=True)
class AnnotateOptions:
    """Which tasks, and which models do them."""

    tasks: str = field(default="", metadata={"metavar": "NAME,NAME"})
    """What is done with each image, with commas between: tag, classify, embed."""

    tag_model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The model that tags, where it is not --model."""

    classify_model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The model that classifies, where it is not --model."""

    embed_model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The model that embeds, where it is not --model."""

    def __post_init__(self) -> None:
        known = ", ".join(TASKS)
        named = self.named
        if not named:
            raise ValueError(f"tasks must name what to do, of {known}")
        if unknown := [name for name in named if name not in TASKS]:
            raise ValueError(f"tasks must be of {known}, but got {unknown[0]!r}")
        if len(set(named)) < len(named):
            raise ValueError(f"tasks must name each once, but got {self.tasks!r}")
        for name in TASKS:
            if getattr(self, f"{name}_model") is not None and name not in named:
                raise ValueError(f"{name}_model is for --tasks {name}")

    @property
    def named(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(name.strip() for name in self.tasks.split(",") if name.strip())


@dataclass(frozen=True, slots=True)
class LabelScoring:
    """Which labels an image gets."""

    multi_label: bool = False
    """Score each label by itself, so that several or none may fit; otherwise they compete for the image."""

    label_threshold: float | None = None
    """Keep labels with at least this score, 0..1."""

    label_thresholds: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A CSV file with thresholds of single labels, label,threshold; they take the place of --label-threshold."""

    label_top: int | None = None
    """Keep at most so many labels, the best; without it all, up to 100, and one of those that compete where words are
    written without scores."""

    calibration: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A file of `annotary calibrate`: its temperature, and its thresholds where none are told."""

    def __post_init__(self) -> None:
        if self.label_threshold is not None and not 0.0 <= self.label_threshold <= 1.0:
            raise ValueError(f"label_threshold must be in 0..1, but got {self.label_threshold}")
        if self.label_top is not None and self.label_top < 1:
            raise ValueError(f"label_top must be at least 1, but got {self.label_top}")


@click.command("annotate", cls=SectionedCommand, short_help="Do several tasks for each image.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@options_of(AnnotateOptions)
@model_option
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the results in this catalogue, for `annotary search`; only new and changed files are annotated.",
)
@click.option(
    "--replace-part",
    is_flag=True,
    help="Throw away what all images of the catalogue have of these tasks where it was made with other settings.",
)
@policy_option
@options_of(TaggingOptions, TagRules, LabelOptions, LabelScoring)
@click.option(
    "--text-cache/--no-text-cache",
    default=True,
    help="Remember the vectors of texts between runs.",
)
@writing_options
@running_options
def command(paths: tuple[str, ...], **values: Any) -> None:
    """Do several tasks for each image, which is read and decoded once for all of them.

    A record has a part for each task, and says which model said what. A run that was stopped goes on when the same
    command is given again.
    """
    click.get_current_context().exit(_annotate(paths, values))


class _Asked(NamedTuple):
    """A task, and what its part of a record depends on beside the model."""

    task: Task
    settings: dict[str, Any]


def _annotate(paths: tuple[str, ...], values: dict[str, Any]) -> int:
    # Whatever can be wrong is found before anything is written.
    annotating = Annotating(paths, values)
    options = made(AnnotateOptions, values)
    if values["catalog"] is not None and (annotating.writing.form or values["as_json"]):
        raise UsageError("--catalog goes neither with --output, nor with --format, nor with --json")
    if values["replace_part"] and values["catalog"] is None:
        raise UsageError("--replace-part is for --catalog")
    _check_used(options.named, values)
    models = _Models(values["model"], options, annotating.runtime)
    make = {
        "tag": lambda: _tagging(models, values),
        "classify": lambda: _classifying(models, values, annotating.writing.form),
        "embed": lambda: _embedding(models),
    }
    asked = [make[name]() for name in TASKS if name in options.named]
    tasks = [one.task for one in asked]
    verbs = ("annotating", "annotated")
    if values["catalog"] is not None:
        by_part = {one.task.part: one.settings for one in asked}
        replaces = values["replace_part"]
        return annotating.fill(values["catalog"], tasks, by_part, verbs, replaces=replaces)
    settings: dict[str, Any] = {"command": "annotate"}
    for task, said in asked:
        told = {"model": task.source, **said}
        settings |= {f"{task.part}.{name}": value for name, value in told.items()}
    return annotating.run(tasks, settings, verbs, _line)


class _Models:
    """The models of a command, each loaded once.

    Args:
        model: The name of the one that does all for which no other is named.
        options: Name the others.
        runtime: How they run.
    """

    def __init__(self, model: str, options: AnnotateOptions, runtime: RuntimeOptions) -> None:
        self._model = model
        self._options = options
        self._runtime = runtime
        self._loaded: dict[str, Loaded] = {}
        self._encoders: dict[str, _Once] = {}

    def name(self, task: str) -> str:
        """What the user calls the model of a task."""
        told: str | None = getattr(self._options, f"{task}_model")
        return told or self._model

    def of(self, task: str) -> Loaded:
        """The model of a task."""
        name = self.name(task)
        if name not in self._loaded:
            self._loaded[name] = loaded(name, self._runtime)
        return self._loaded[name]

    def encoder(self, task: str) -> Loaded:
        """The model of a task that embeds images: for all its tasks once."""
        name, found = self.name(task), self.of(task)
        if hasattr(found.model, "embed_images") and name not in self._encoders:
            self._encoders[name] = _Once(found.model)
        return found._replace(model=self._encoders.get(name, found.model))


class _Once:
    """An encoder that embeds a batch once, though several tasks ask for it one after the other.

    Args:
        model: The encoder. It is asked for all else, and has what it has.
    """

    def __init__(self, model: Any) -> None:
        self._encoder = model
        self._last = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def embed_images(self, batch: npt.NDArray[np.generic]) -> Vectors:
        """Unit vectors float32[b, d]."""
        if getattr(self._last, "batch", None) is not batch:
            self._last.vectors = self._encoder.embed_images(batch)
            self._last.batch = batch
        vectors: Vectors = self._last.vectors
        return vectors


def _tagging(models: _Models, values: dict[str, Any]) -> _Asked:
    from annotary.tasks.tagging import SingleTagger, Tagging, tagger

    found = models.of("tag")
    scorer = SingleTagger(tagger(found.model))
    # A policy looks at labels where there are any.
    path = None if _asks(values, "classify") else values["policy"]
    judge = tag_policy(path, scorer.vocabulary.names)
    task = Tagging(scorer, made(TaggingOptions, values), made(TagRules, values), judge=judge)
    return _Asked(task, {"weights": found.weights, **task.settings()})


def _classifying(models: _Models, values: dict[str, Any], form: str | None) -> _Asked:
    from annotary.cli._output import tell
    from annotary.cli.classify import zero_shot

    scoring = made(LabelScoring, values)
    found = models.encoder("classify")
    kept = labels_kept(form, scoring.label_top, found.model, multi_label=scoring.multi_label)
    renamed = {"threshold": scoring.label_threshold, "top": kept}
    task = zero_shot(found, {**values, **renamed})
    if task.truncated and not values["quiet"]:
        named = ", ".join(task.truncated[:5]) + (", ..." if len(task.truncated) > 5 else "")
        tell(f"longer than {task.source} reads, so the end is left out: {named}")
    return _Asked(task, {"weights": found.weights, **task.settings()})


def _embedding(models: _Models) -> _Asked:
    from annotary.tasks.embedding import Embed
    from annotary.tasks.encoding import image_encoder

    found = models.encoder("embed")
    task = Embed(image_encoder(found.model))
    return _Asked(task, found.in_catalog(models.name("embed")))


def _asks(values: dict[str, Any], task: str) -> bool:
    return task in made(AnnotateOptions, values).named


def _check_used(named: tuple[str, ...], values: dict[str, Any]) -> None:
    """Refuse options of tasks that are not asked for: they would be without effect.

    Raises:
        UsageError: One is given.
    """
    of_task = {"tag": (TaggingOptions, TagRules), "classify": (LabelOptions, LabelScoring)}
    for task, records in of_task.items():
        if task in named:
            continue
        for entry in (entry for record in records for entry in fields(record)):
            if values[entry.name] not in (entry.default, ()):
                raise UsageError(f"--{entry.name.replace('_', '-')} is for --tasks {task}")
    if values["policy"] is not None and not {"tag", "classify"} & {*named}:
        raise UsageError("--policy is for --tasks tag and --tasks classify")


def _line(record: Record) -> str | None:
    """All that was said of an image as a line for people; failures are told on standard error."""
    from annotary.cli._output import MOST_PRINTED, one_line, tell
    from annotary.records import Annotation

    if not isinstance(record, Annotation):
        tell(f"{record.image}: {record.message}")
        return None
    parts = []
    if record.decision is not None:
        parts.append(record.decision.action.upper())
    if "tags" in record.sources:
        named = (f"{tag.name} {tag.score:.2f}" for tag in record.tags)
        parts.append(", ".join(named) or "(no tags)")
    if "labels" in record.sources:
        labels = record.labels[:MOST_PRINTED]
        named = (f"{label.name} {label.score:.2f}" for label in labels)
        parts.append(", ".join(named) or "(no labels)")
    if record.embedding is not None:
        parts.append(f"{len(record.embedding.vector)} numbers")
    return one_line(f"{record.image}: {'; '.join(parts)}")
