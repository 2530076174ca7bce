"""The tasks of `annotary annotate`, made of its options: what each needs of a model, and what it depends on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from annotary.cli._annotating import Loaded, tag_policy
from annotary.cli._labels import labels_kept
from annotary.cli._options import given, made
from annotary.errors import UsageError
from annotary.tasks.captioning import CaptioningOptions
from annotary.tasks.detection import DetectionOptions
from annotary.tasks.label_sets import LabelOptions
from annotary.tasks.queries import QueryOptions
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from annotary.runtime import RuntimeOptions
    from annotary.tasks import Task
    from annotary.tasks.encoding import Vectors

PARTS = {
    "tag": "tags",
    "classify": "labels",
    "caption": "captions",
    "ask": "answers",
    "detect": "boxes",
    "embed": "embedding",
}
"""The tasks, and the part of a record that each fills, in its order."""

TASKS = tuple(PARTS)

BOX = "box"
"""What options of detection begin with, as tags have options of the same names."""


@dataclass(frozen=True, slots=True)
class AnnotateOptions:
    """Which tasks, and which models do them."""

    tasks: str = field(default="", metadata={"metavar": "NAME,NAME"})
    """What is done with each image, with commas between: tag, classify, caption, ask, detect, embed."""

    tag_model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The model that tags, where it is not --model."""

    classify_model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The model that classifies, where it is not --model."""

    caption_model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The model that writes captions, where it is not --model."""

    matcher: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The model that judges captions; without it nobody does."""

    ask_model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The model that answers questions, where it is not --model."""

    detect_model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The model that finds boxes, where it is not --model."""

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
        if self.matcher is not None and "caption" not in named:
            raise ValueError("matcher is for --tasks caption")

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


@dataclass(frozen=True, slots=True)
class AskOptions:
    """What is asked of every image."""

    question: tuple[str, ...] = field(default=(), metadata={"metavar": "TEXT"})
    """A question; may be given several times."""

    answers: str | None = field(default=None, metadata={"metavar": "A,B,..."})
    """Choose from these answers, with commas between them, instead of finding words."""


class Asked(NamedTuple):
    """A task of the command.

    Attributes:
        task: It.
        settings: What its part of a record depends on beside the model.
        classes: What its boxes may be labelled with, in their order.
    """

    task: Task
    settings: dict[str, Any]
    classes: tuple[str, ...] = ()


class Models:
    """The models of a command, each loaded once.

    Args:
        model: The name of the one that does all for which no other is named.
        options: Name the others.
        runtime: How they run.
        load: Loads one by name.
    """

    def __init__(
        self,
        model: str,
        options: AnnotateOptions,
        runtime: RuntimeOptions,
        load: Callable[[str, RuntimeOptions], Loaded],
    ) -> None:
        self._model = model
        self._options = options
        self._runtime = runtime
        self._load = load
        self._loaded: dict[str, Loaded] = {}
        self._encoders: dict[str, _Once] = {}

    def name(self, task: str) -> str:
        """What the user calls the model of a task."""
        told: str | None = getattr(self._options, f"{task}_model")
        return told or self._model

    def of(self, task: str) -> Loaded:
        """The model of a task."""
        return self.named(self.name(task))

    def named(self, name: str) -> Loaded:
        """The model of a name."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name, self._runtime)
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


def check_options(named: tuple[str, ...], values: Mapping[str, Any]) -> None:
    """Check the options of all tasks before a model is loaded.

    Raises:
        UsageError: One is out of range, or is of a task that is not asked for and would be without effect.
    """
    labels = ("classify", "detect") if _shares_labels(values) else ("classify",)
    of_tasks: tuple[tuple[tuple[str, ...], str, tuple[type, ...]], ...] = (
        (("tag",), "", (TaggingOptions, TagRules)),
        (labels, "", (LabelOptions,)),
        (("classify",), "", (LabelScoring,)),
        (("caption",), "", (CaptioningOptions,)),
        (("ask",), "", (AskOptions,)),
        (("detect",), BOX, (QueryOptions, DetectionOptions)),
    )
    for tasks, prefix, records in of_tasks:
        if not {*tasks} & {*named}:
            for flag in given(values, *records, prefix=prefix):
                raise UsageError(f"{flag} is for --tasks {tasks[0]}")
        for record in records:
            made(record, values, prefix=prefix)
    if values["policy"] is not None and not {"tag", "classify"} & {*named}:
        raise UsageError("--policy is for --tasks tag and --tasks classify")


def _shares_labels(values: Mapping[str, Any]) -> bool:
    """Whether boxes are of the labels that images are classified with."""
    return not made(QueryOptions, values, prefix=BOX).has_labels


def tagging(models: Models, values: Mapping[str, Any], named: tuple[str, ...]) -> Asked:
    """The task `tag`."""
    from annotary.tasks.tagging import SingleTagger, Tagging, tagger

    found = models.of("tag")
    scorer = SingleTagger(tagger(found.model))
    # A policy looks at labels where there are any.
    path = None if "classify" in named else values["policy"]
    judge = tag_policy(path, scorer.vocabulary.names)
    task = Tagging(scorer, made(TaggingOptions, values), made(TagRules, values), judge=judge)
    return Asked(task, {"weights": found.weights, **task.settings()})


def classifying(models: Models, values: Mapping[str, Any], form: str | None) -> Asked:
    """The task `classify`."""
    from annotary.cli.classify import zero_shot

    scoring = made(LabelScoring, values)
    found = models.encoder("classify")
    kept = labels_kept(form, scoring.label_top, found.model, multi_label=scoring.multi_label)
    renamed = {"threshold": scoring.label_threshold, "top": kept}
    task = zero_shot(found, {**values, **renamed})
    _tell_truncated(task.truncated, task.source, values)
    return Asked(task, {"weights": found.weights, **task.settings()})


def captioning(models: Models, values: Mapping[str, Any]) -> Asked:
    """The task `caption`."""
    from annotary.tasks.captioning import Captioning
    from annotary.tasks.writing import captioner, matcher

    options = made(CaptioningOptions, values)
    if options.min_match is not None and values["matcher"] is None:
        raise UsageError("--min-match needs --matcher NAME, such as blip-itm-base-coco")
    found = models.of("caption")
    judge = None if values["matcher"] is None else models.named(values["matcher"])
    task = Captioning(
        captioner(found.model),
        options.decoding(),
        options.prompt,
        matcher=None if judge is None else matcher(judge.model),
        min_match=options.min_match,
    )
    weights = {"weights": found.weights, "matcher_weights": judge.weights if judge else None}
    return Asked(task, {**weights, **task.settings()})


def answering(models: Models, values: Mapping[str, Any]) -> Asked:
    """The task `ask`."""
    from annotary.tasks.answering import Answering, Question
    from annotary.tasks.label_sets import split_labels
    from annotary.tasks.writing import answerer

    options = made(AskOptions, values)
    if not options.question:
        raise UsageError('--tasks ask needs --question TEXT, such as "how many people are there?"')
    answers = None if options.answers is None else tuple(split_labels(options.answers))
    if answers is not None and not answers:
        raise UsageError("--answers holds no answer")
    found = models.of("ask")
    questions = [Question(text, answers) for text in options.question]
    task = Answering(answerer(found.model), questions)
    _tell_truncated(task.truncated, task.source, values)
    return Asked(task, {"weights": found.weights, **task.settings()})


def detecting(models: Models, values: Mapping[str, Any]) -> Asked:
    """The task `detect`, of labels of its own or of those that images are classified with."""
    from annotary.cli.detect import detection
    from annotary.tasks.queries import read_queries

    options = made(QueryOptions, values, prefix=BOX)
    if not options.has_labels:
        told = {name: values[name] for name in ("labels", "labels_file", "ontology")}
        if not any(told.values()):
            raise UsageError("--tasks detect needs labels: --box-labels, or --labels for all tasks")
        options = QueryOptions(**told, template=options.template, templates=options.templates)
    found = models.of("detect")
    renamed = {entry.name: values[f"{BOX}_{entry.name}"] for entry in fields(DetectionOptions)}
    beside = {"like": (), "box": (), "like_name": ()}
    task = detection(found, {**values, **renamed, **beside}, read_queries(options))
    _tell_truncated(task.truncated, task.source, values)
    return Asked(task, {"weights": found.weights, **task.settings()}, task.names)


def embedding(models: Models) -> Asked:
    """The task `embed`."""
    from annotary.tasks.embedding import Embed
    from annotary.tasks.encoding import image_encoder

    found = models.encoder("embed")
    task = Embed(image_encoder(found.model))
    return Asked(task, found.in_catalog(models.name("embed")))


def _tell_truncated(texts: tuple[str, ...], source: str, values: Mapping[str, Any]) -> None:
    from annotary.cli._output import tell
    from annotary.cli._texts import told_cut

    if texts and not values["quiet"]:
        tell(told_cut(texts, source))
