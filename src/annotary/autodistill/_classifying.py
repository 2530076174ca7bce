"""The base model of classification: zero-shot labels, datasets in folders, embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from annotary.api import Annotator
from annotary.autodistill._asking import (
    ImageOrArray,
    checked_share,
    labelled,
    loaded_model,
    only_record,
    pairs_of,
    record_of,
    rgb_of,
    warn_of_cut,
)
from annotary.autodistill._imported import (
    CaptionOntology,
    ClassificationBaseModel,
    UniqueOntology,
    supervision,
)
from annotary.datasets import DatasetOptions, LabelTask, label_task
from annotary.datasets._building import TABLE_FILE
from annotary.errors import UsageError
from annotary.models import Model
from annotary.runtime import RuntimeOptions
from annotary.sinks._contract import Placing
from annotary.tasks.encoding import Vectors, dual_encoder
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions

SPLIT = "train=0.7,valid=0.15,test=0.15"
"""As autodistill splits datasets for classification, and what it calls the parts."""


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
            self.confidence = checked_share(confidence)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._model, self._weights, self._cache = loaded_model(model, runtime)
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
        pairs = pairs_of(ontology)
        labels = LabelSet.of(pairs, background=self._background)
        unique = UniqueOntology(pairs)
        classes = unique.classes()
        assert labels.names == tuple(classes)
        options = ZeroShotOptions(multi_label=self._options.multi_label, top=len(classes))
        self._task = ZeroShot(dual_encoder(self._model), labels, options, cache=self._cache)
        self._labels, self.ontology = labels, unique
        warn_of_cut(self._task.truncated, self._model.card.id)

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
            least = self.confidence if confidence is None else checked_share(confidence)
        except ValueError as error:
            raise UsageError(str(error)) from error
        labels = record_of(self._task, input).labels
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
        try:
            least = self.confidence if confidence is None else checked_share(confidence)
            options = DatasetOptions(split=split, seed=seed, unsure=unsure, placing=placing)
        except ValueError as error:
            raise UsageError(str(error)) from error
        output = labelled(
            *(input_folder, extension, output_folder, "folders", options),
            lambda: self._label_task(least),
            retry_failed=retry_failed,
        )
        return self._dataset(output)

    def embed_image(self, input: ImageOrArray) -> Vectors:  # noqa: A002 - as autodistill calls it
        """The unit vector float32[d] of an image.

        Raises:
            UsageError: It is no image, or more than one.
            ImageError: The image cannot be had.
        """
        records = list(self._annotator.embed(rgb_of(input)))
        record = only_record(records)
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
