"""annotary as a base model of autodistill: zero-shot labels as `supervision` classes, datasets, embeddings.

    from annotary.autodistill import Annotary, CaptionOntology

    base_model = Annotary(ontology=CaptionOntology({"a forklift": "forklift", "person": "person"}))
    results = base_model.predict("context_images/one.jpeg")
    base_model.label("context_images")

It takes the place of autodistill-metaclip. Needs the extra `autodistill`; it is the one module that is not imported
without it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary.api import Annotator
from annotary.datasets import Building, Dataset, DatasetOptions, Labelling, LabelTask, label_task
from annotary.datasets._building import TABLE_FILE
from annotary.errors import MissingExtra, UnreadableImage, UsageError
from annotary.images import DecodeOptions
from annotary.inputs import ImageInput, items_of
from annotary.models import Model, find, load_model
from annotary.pipeline import PipelineOptions, annotate
from annotary.records import Annotation
from annotary.runtime import RuntimeOptions
from annotary.sinks._contract import Placing
from annotary.sources import Reader, SourceOptions, open_sources
from annotary.tasks.encoding import Vectors, dual_encoder
from annotary.tasks.label_sets import LabelSet, shortened
from annotary.tasks.text_cache import TextCache
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions


class _Absent(ModuleType):
    """Stands in for roboflow, which autodistill imports without asking for it, and needs for its web service alone."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError("this part of autodistill needs roboflow: pip install roboflow")


@contextmanager
def _roboflow_or_none() -> Iterator[None]:
    """Let autodistill be imported where roboflow is not installed."""
    if "roboflow" in sys.modules or importlib.util.find_spec("roboflow") is not None:
        yield
        return
    sys.modules["roboflow"] = _Absent("roboflow")
    try:
        yield
    finally:
        del sys.modules["roboflow"]


try:
    with _roboflow_or_none():
        import supervision
        from autodistill.classification import (  # type: ignore[import-untyped]
            ClassificationBaseModel,
        )
        from autodistill.detection import CaptionOntology  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingExtra("The adapter for autodistill", "autodistill") from error

__all__ = ["Annotary", "CaptionOntology"]

ImageOrArray: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""What autodistill's users hand over: a path, a URL, a Pillow image, or an array of OpenCV: uint8[H, W, 3] in BGR,
[H, W] grey, [H, W, 4] in BGRA. (Elsewhere in annotary, arrays are RGB.)"""

SPLIT = "train=0.7,valid=0.15,test=0.15"
"""As autodistill splits datasets for classification, and what it calls the parts."""


class UniqueOntology(CaptionOntology):  # type: ignore[misc]
    """An ontology whose classes are each there once, in the order in which they come first.

    autodistill's own lists a class once for each of its prompts, so that one class has several numbers.
    """

    def classes(self) -> list[str]:
        """The classes; their places are the ids of predictions."""
        return list(dict.fromkeys(super().classes()))


class Annotary(ClassificationBaseModel):  # type: ignore[misc]
    """Labels images zero-shot.

    All prompts are embedded once, when the model is made. Prompts are used as they are; several of one class are
    averaged.

    Args:
        ontology: Prompts to classes: autodistill's `CaptionOntology`, or a dictionary of the same.
        model: A name as for `annotary.load`, or a model that is loaded already.
        confidence: From which probability on `predict` keeps a class, 0..1.
        multi_label: Score each class by itself; otherwise they compete, where the weights are made so.
        background: Prompts for what is none of the classes.
        device: Where the network runs: images and texts alike.
        threads: Processor cores to use; all when nothing is said.

    Attributes:
        confidence: The same.

    Raises:
        UsageError: An option makes no sense, or the model does not know texts.
    """

    def __init__(
        self,
        ontology: CaptionOntology | Mapping[str, str],
        model: str | Model = "starter",
        confidence: float = 0.5,
        *,
        multi_label: bool = False,
        background: Iterable[str] = (),
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
    ) -> None:
        try:
            runtime = RuntimeOptions(threads=threads, device=device)
            self._options = ZeroShotOptions(multi_label=multi_label)
            self.confidence = _checked(confidence)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._cache: TextCache | None = None
        if isinstance(model, str):
            found = find(model, runtime)
            self._model, self._weights = load_model(found, runtime), found.fingerprint()
            self._cache = TextCache.of(self._weights, self._model)
        else:
            self._model, self._weights = model, model.card.id
        self._annotator = Annotator(self._model)
        self._background = background
        if not isinstance(background, str) and isinstance(background, Iterable):
            self._background = tuple(background)  # as it is read again with every ontology
        self._take(ontology)

    def set_ontology(self, ontology: CaptionOntology | Mapping[str, str]) -> None:
        """Take other prompts and classes; they are embedded at once.

        Raises:
            UsageError: It is no ontology. The one that was there stays.
        """
        self._take(ontology)

    def _take(self, ontology: CaptionOntology | Mapping[str, str]) -> None:
        if not isinstance(ontology, Mapping) and not hasattr(ontology, "promptMap"):
            raise UsageError(f"an ontology is like {{'a kitten': 'cat'}}, but got {ontology!r}")
        pairs = dict(ontology if isinstance(ontology, Mapping) else ontology.promptMap)
        labels = LabelSet.of(pairs, background=self._background)
        unique = UniqueOntology(pairs)
        classes = unique.classes()
        assert labels.names == tuple(classes)
        options = ZeroShotOptions(multi_label=self._options.multi_label, top=len(classes))
        self._task = ZeroShot(dual_encoder(self._model), labels, options, cache=self._cache)
        self._labels, self.ontology = labels, unique
        if cut := self._task.truncated:
            named = ", ".join(map(shortened, cut[:3])) + (", ..." if len(cut) > 3 else "")
            warnings.warn(
                f"longer than {self._model.card.id} reads, so the end is left out: prompts of {named}",
                stacklevel=3,
            )

    @property
    def classes(self) -> list[str]:
        """The classes, each once; predictions number them."""
        return list(self._labels.names)

    def predict(
        self,
        input: ImageOrArray,  # noqa: A002 - as autodistill calls it
        confidence: float | None = None,
        *,
        at_least_one: bool = False,
    ) -> supervision.Classifications:
        """Classify an image.

        Args:
            input: The image.
            confidence: Keep classes with at least this probability, 0..1; the model's own when nothing is said.
            at_least_one: Give the best class where none reaches it; otherwise there may be none.

        Returns:
            The classes that are kept, the best first: `class_id`, places in `classes`, and `confidence`, float32.

        Raises:
            UsageError: It is no image, or more than one.
            ImageError: The image cannot be had.
        """
        try:
            least = self.confidence if confidence is None else _checked(confidence)
        except ValueError as error:
            raise UsageError(str(error)) from error
        labels = self._record(input).labels
        kept = [label for label in labels if label.score >= least]
        if not kept and at_least_one:
            kept = list(labels[:1])
        place = {name: number for number, name in enumerate(self._labels.names)}
        return supervision.Classifications(
            class_id=np.array([place[label.name] for label in kept], dtype=np.int_),
            confidence=np.array([label.score for label in kept], dtype=np.float32),
        )

    def label(
        self,
        input_folder: str | os.PathLike[str],
        extension: str | None = None,
        output_folder: str | os.PathLike[str] | None = None,
        *,
        confidence: float | None = None,
        split: str = SPLIT,
        seed: int = 0,
        unsure: Literal["keep", "leave-out"] = "keep",
        placing: Placing = "copy",
        retry_failed: bool = False,
    ) -> supervision.ClassificationDataset:
        """Make a dataset of a folder of images, as `annotary label` does: `train/CLASS/`, `valid/CLASS/`, ...

        A call that was stopped goes on when it is made again, and images that were added since are added. Images are
        copied as they are; the originals are not touched. What cannot be read is listed in `failures.jsonl`.

        Args:
            input_folder: Where the images are; folders in it are looked into.
            extension: Take only files with this ending, as ".jpg"; all images when nothing is said.
            output_folder: Where the dataset is made; `input_folder` with "_labeled" behind it when nothing is said.
            confidence: Images whose best class does not reach this probability are put into `unsure`, 0..1; the model's
                own when nothing is said, and 0 gives every image its best class.
            split: The parts and their shares.
            seed: Of the split.
            unsure: Whether unsure images are kept or left out.
            placing: Copy images, or link them.
            retry_failed: Whether images are tried again that failed before.

        Returns:
            The labelled images of all parts. Images are read when they are asked for; a path and a class of each are in
            memory. For millions, use `annotary label`.

        Raises:
            UsageError: The folder holds no image, or an option makes no sense.
            OutputError: The dataset cannot be written, or is one of other settings.
        """
        told = os.fspath(input_folder)
        source = told.rstrip("/\\") or told
        output = Path(output_folder if output_folder is not None else f"{source}_labeled")
        try:
            least = self.confidence if confidence is None else _checked(confidence)
            only = () if extension is None else (f"*{_either_case(extension)}",)
            sources = SourceOptions(include_files=only)
            options = DatasetOptions(split=split, seed=seed, unsure=unsure, placing=placing)
        except ValueError as error:
            raise UsageError(str(error)) from error
        items = open_sources([source], sources)
        items = chain(list(islice(items, 1)), items)  # where there is none, nothing is made
        task, description = self._label_task(least)
        with Dataset(
            *(output, "folders", options, description, [source]), retry_failed=retry_failed
        ) as dataset:
            with Labelling(
                *(dataset, items, task, sources, DecodeOptions(), PipelineOptions())
            ) as labelling:
                for _ in labelling:
                    pass
            for _ in Building(dataset):
                pass
        return self._dataset(output)

    def embed_image(self, input: ImageOrArray) -> Vectors:  # noqa: A002 - as autodistill calls it
        """The unit vector float32[d] of an image.

        Raises:
            UsageError: It is no image, or more than one.
            ImageError: The image cannot be had.
        """
        records = list(self._annotator.embed(_rgb(input)))
        record = _only(records)
        assert record.embedding is not None
        return np.array(record.embedding.vector, dtype=np.float32)

    def embed_text(self, input: str | Sequence[str]) -> Vectors:  # noqa: A002 - as autodistill calls it
        """The unit vector float32[d] of a text, or float32[n, d] of several."""
        found = self._annotator.embed_texts(input)
        return found[0] if isinstance(input, str) else found

    def compare(self, embed1: npt.ArrayLike, embed2: npt.ArrayLike) -> float:
        """The cosine -1..1 of two embeddings, of images or texts.

        Args:
            embed1: float[d] or [1, d].
            embed2: The same.

        Raises:
            UsageError: They are no embeddings of one model.
        """
        one, other = _vector(embed1), _vector(embed2)
        if one.shape != other.shape:
            raise UsageError(
                f"embeddings of one model are alike in length, but got {len(one)} and {len(other)}"
            )
        length = float(np.linalg.norm(one) * np.linalg.norm(other))
        return float(np.clip(one @ other / length, -1.0, 1.0)) if length else 0.0

    def _record(self, image: ImageOrArray) -> Annotation:
        """What the task says of an image."""
        sources = SourceOptions()
        items = items_of(_rgb(image), sources)
        with (
            Reader(sources) as reader,
            closing(
                annotate(items, [self._task], reader, DecodeOptions(), PipelineOptions())
            ) as results,
        ):
            return _only([result.record for result in results])

    def _label_task(self, least: float) -> LabelTask:
        """How a dataset is labelled, and what it is of."""
        return label_task(
            dual_encoder(self._model),
            self._labels,
            ZeroShotOptions(multi_label=self._options.multi_label, threshold=least),
            settings={
                "command": "label",
                "weights": self._weights,
                "precision": self._model.choice.precision,
            },
            cache=self._cache,
        )

    def _dataset(self, output: Path) -> supervision.ClassificationDataset:
        """What was labelled, by the list of it."""
        import csv

        place = {name: number for number, name in enumerate(self._labels.names)}
        annotations = {}
        with (output / TABLE_FILE).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["part"] != "unsure":
                    annotations[str(output / row["file"])] = supervision.Classifications(
                        class_id=np.array([place[row["label"]]], dtype=np.int_),
                        confidence=np.array([float(row["score"])], dtype=np.float32),
                    )
        return supervision.ClassificationDataset(self.classes, list(annotations), annotations)


def _checked(confidence: float) -> float:
    if not isinstance(confidence, Real) or not 0.0 <= float(confidence) <= 1.0:
        raise ValueError(f"confidence must be in 0..1, but got {confidence!r}")
    return float(confidence)


def _either_case(extension: str) -> str:
    """A pattern for an ending: ".jpg" is ".JPG", too."""
    ending = extension if extension.startswith(".") else f".{extension}"
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in ending)


def _rgb(image: ImageOrArray) -> ImageInput:
    """An input with the channels of OpenCV's arrays in the order that annotary takes."""
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (3, 4):
        order = [2, 1, 0, 3][: image.shape[2]]
        return np.ascontiguousarray(image[..., order])
    if isinstance(image, str | os.PathLike | bytes | np.ndarray | Image.Image):
        return image
    raise UsageError(
        f"an image is a path, a URL, a Pillow image or an array, but got {type(image).__name__}"
    )


def _only(records: Sequence[Any]) -> Annotation:
    """The record of one image.

    Raises:
        UsageError: There is another number of them.
        ImageError: It cannot be read.
    """
    if len(records) != 1:
        raise UsageError(f"this takes one image at a time, but got {len(records)}; use label")
    (record,) = records
    if not isinstance(record, Annotation):
        raise UnreadableImage(f"{record.image}: {record.message}")
    return record


def _vector(told: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        vector = np.asarray(told, dtype=np.float64).squeeze()
    except (ValueError, TypeError) as error:
        raise UsageError(
            "compare takes what embed_image and embed_text give, which are arrays"
        ) from error
    if vector.ndim != 1:
        raise UsageError(f"an embedding is an array of one axis, but got {list(vector.shape)}")
    if not np.isfinite(vector).all():
        raise UsageError("an embedding holds numbers, but this one has some that are none")
    return vector
