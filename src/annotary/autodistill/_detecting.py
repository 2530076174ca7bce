"""The base model of detection: boxes of whatever words say, and datasets of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import numpy as np

from annotary.autodistill._asking import (
    ImageOrArray,
    checked_share,
    labelled,
    loaded_model,
    pairs_of,
    record_of,
    warn_of_cut,
)
from annotary.autodistill._imported import (
    CaptionOntology,
    DetectionBaseModel,
    UniqueOntology,
    supervision,
)
from annotary.datasets import BoxTask, DatasetOptions, box_task, lowest_kept, parse_shares
from annotary.errors import UsageError
from annotary.models import Model
from annotary.runtime import RuntimeOptions
from annotary.sinks._contract import Placing
from annotary.tasks.composing import Composed, ComposeOptions
from annotary.tasks.detection import Detection, DetectionOptions
from annotary.tasks.encoding import dual_encoder
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.locating import detector
from annotary.tasks.zero_shot import ZeroShot, ZeroShotOptions

SPLIT_OF_BOXES = "train=0.8,valid=0.2"
"""As autodistill splits datasets for detection, and what it calls the parts."""


DETECTOR = "owlv2-base-patch16-ensemble"
"""What finds boxes when nothing is said."""


class AnnotaryDetection(DetectionBaseModel):  # type: ignore[misc]
    """Finds boxes, of whatever words say.

    All prompts are embedded once, when the model is made. Of several prompts of one class the mean counts.

    Args:
        ontology: Prompts to classes: autodistill's `CaptionOntology`, or a dictionary of the same.
        model: A name as for `annotary.load`, or a model that is loaded already.
        confidence: Above which probability a box is kept, 0..1.
        nms: Of boxes of one class that overlap by more (intersection over union, 0..1) the best is kept; all where
            nothing is said.
        classifier: Looks at each box, and names it where it is sure: a name, or a model that is loaded already.
        classifier_confidence: From which probability on it is sure, 0..1.
        device: Where the networks run.
        threads: Processor cores to use; all when nothing is said.

    Attributes:
        confidence: The same.

    Raises:
        UsageError: An option makes no sense, or a model cannot do what it is to do.
    """

    def __init__(
        self,
        ontology: CaptionOntology | Mapping[str, str],
        model: str | Model = DETECTOR,
        confidence: float = 0.1,
        *,
        nms: float | None = None,
        classifier: str | Model | None = None,
        classifier_confidence: float = ComposeOptions().compose_threshold,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
    ) -> None:
        try:
            runtime = RuntimeOptions(threads=threads, device=device)
            self.confidence = checked_share(confidence)
            self._nms = DetectionOptions(nms=nms).nms
            self._compose = ComposeOptions(compose_threshold=checked_share(classifier_confidence))
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._model, self._weights, self._cache = loaded_model(model, runtime)
        self._classifier = None if classifier is None else loaded_model(classifier, runtime)
        self._take(ontology)

    def set_ontology(self, ontology: CaptionOntology | Mapping[str, str]) -> None:
        """Take other prompts and classes; they are embedded at once.

        Raises:
            UsageError: It is no ontology. The one that was there stays.
        """
        self._take(ontology)

    @property
    def classes(self) -> list[str]:
        """The classes, each once; predictions number them."""
        return list(self._labels.names)

    def predict(
        self,
        input: ImageOrArray,  # noqa: A002 - as autodistill calls it
        confidence: float | None = None,
    ) -> supervision.Detections:
        """Find boxes in an image.

        Args:
            input: The image.
            confidence: Keep boxes above this probability, 0..1; the model's own when nothing is said.

        Returns:
            The boxes, the best first: `xyxy` in pixels of the upright image, `class_id`, places in `classes`, and
            `confidence`, float32.

        Raises:
            UsageError: It is no image, or more than one.
            ImageError: The image cannot be had.
        """
        boxes = record_of(self._task(self._least(confidence)), input).boxes
        place = {name: number for number, name in enumerate(self._labels.names)}
        return supervision.Detections(
            xyxy=np.array([box.xyxy for box in boxes], dtype=np.float32).reshape(-1, 4),
            class_id=np.array([place[box.label] for box in boxes], dtype=np.int_),
            confidence=np.array([box.score for box in boxes], dtype=np.float32),
        )

    def label(
        self,
        input_folder: str | os.PathLike[str],
        extension: str | None = None,
        output_folder: str | os.PathLike[str] | None = None,
        *,
        confidence: float | None = None,
        split: str = SPLIT_OF_BOXES,
        seed: int = 0,
        backgrounds: Literal["keep", "leave-out"] = "keep",
        placing: Placing = "copy",
        retry_failed: bool = False,
    ) -> supervision.DetectionDataset:
        """Make a YOLO dataset of a folder of images, as `annotary label` does: `train/images`, `train/labels`, ...

        A call that was stopped goes on when it is made again, and images that were added since are added. Images are
        copied as they are, but for those that their EXIF turns; the originals are not touched. What cannot be read is
        listed in `failures.jsonl`.

        Args:
            input_folder: Where the images are; folders in it are looked into.
            extension: Take only files with this ending, as ".jpg"; all images when nothing is said.
            output_folder: Where the dataset is made; `input_folder` with "_labeled" behind it when nothing is said.
            confidence: Keep boxes above this probability, 0..1; the model's own when nothing is said.
            split: The parts and their shares.
            seed: Of the split.
            backgrounds: Whether images without a box are kept or left out.
            placing: Copy images, or link them.
            retry_failed: Whether images are tried again that failed before.

        Returns:
            The images of all parts with their boxes, as they are in the dataset's files. Images are read when they are
            asked for; the boxes are in memory. For millions, use `annotary label`.

        Raises:
            UsageError: The folder holds no image, or an option makes no sense.
            OutputError: The dataset cannot be written, or is one of other settings.
        """
        least = self._least(confidence)
        try:
            options = DatasetOptions(
                split=split, seed=seed, backgrounds=backgrounds, placing=placing
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        output = labelled(
            *(input_folder, extension, output_folder, "yolo", options),
            lambda: self._box_task(least),
            retry_failed=retry_failed,
        )
        parts = [
            supervision.DetectionDataset.from_yolo(
                str(output / part / "images"),
                str(output / part / "labels"),
                str(output / "data.yaml"),
            )
            for part in parse_shares(split)
            if any((output / part / "images").iterdir())
        ]
        return supervision.DetectionDataset(
            self.classes,
            [path for part in parts for path in part.image_paths],
            {path: found for part in parts for path, found in part.annotations.items()},
        )

    def _least(self, confidence: float | None) -> float:
        try:
            return self.confidence if confidence is None else checked_share(confidence)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _take(self, ontology: CaptionOntology | Mapping[str, str]) -> None:
        pairs = pairs_of(ontology)
        labels = LabelSet.of(pairs)
        detector(self._model)
        before = getattr(self, "_labels", None)
        self._labels = labels
        try:
            task = self._task(self.confidence)
        except BaseException:
            if before is not None:
                self._labels = before
            raise
        self.ontology = UniqueOntology(pairs)
        warn_of_cut(task.truncated, task.source)

    def _task(self, least: float) -> Detection | Composed:
        """What finds boxes above a probability; texts that were embedded before are remembered."""
        task = Detection(
            detector(self._model),
            self._labels,
            DetectionOptions(threshold=least, nms=self._nms),
            thresholds=dict.fromkeys(self._labels.names, least),
            cache=self._cache,
        )
        if self._classifier is None:
            return task
        model, _, cache = self._classifier
        options = ZeroShotOptions(top=1)
        return Composed(
            task, ZeroShot(dual_encoder(model), self._labels, options, cache=cache), self._compose
        )

    def _box_task(self, least: float) -> BoxTask:
        """How a dataset is labelled, and what it is of."""
        thresholds = dict.fromkeys(self._labels.names, least)
        task = self._task(lowest_kept(thresholds.values()))
        weights = (
            self._weights if self._classifier is None else f"{self._weights}+{self._classifier[1]}"
        )
        return box_task(
            task,
            self._labels,
            thresholds,
            settings={
                **task.settings(),
                "command": "label",
                "weights": weights,
                "precision": self._model.choice.precision,
            },
            compose_threshold=self._compose.compose_threshold,
        )
