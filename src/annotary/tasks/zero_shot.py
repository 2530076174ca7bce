"""Zero-shot classification: which of the labels that a user offers fit an image.

The score of a label comes from the cosine of the image's vector and the label's vector, the way that the weights say:

* `softmax` (CLIP, MetaCLIP): the labels compete, `softmax(scale * cosine)` over all labels of the image, and over the
  background prompts where there are any. With `multi_label` each label competes with the background alone:
  `sigmoid(logit - log(mean(exp(background logits))))`, because the softmax over other labels can neither say
  "two of them" nor "none".
* `sigmoid` (SigLIP): `sigmoid(scale * cosine + bias)`, each label by itself, with and without `multi_label`.

"None of these" is, in a competition, the share of all background prompts together; of independent scores the
probability that none of the labels holds, `prod(1 - score)`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annotary.errors import UsageError
from annotary.records import Item, Label
from annotary.tasks import Picture
from annotary.tasks.asking import AsksOneModel
from annotary.tasks.calibration import Calibration
from annotary.tasks.class_vectors import class_vectors
from annotary.tasks.encoding import DualEncoder
from annotary.tasks.judging import Judge
from annotary.tasks.label_sets import DEFAULT_BACKGROUND, LabelClass, LabelSet
from annotary.tasks.text_cache import TextCache

Floats = npt.NDArray[np.float32]

MOST_LABELS = 100
"""Labels of an image where `top` does not say how many."""


@dataclass(frozen=True, slots=True)
class ZeroShotOptions:
    """Which labels an image gets."""

    multi_label: bool = False
    """Score each label by itself, so that several or none may fit; otherwise they compete for the image."""

    threshold: float | None = None
    """Keep labels with at least this score, 0..1."""

    label_thresholds: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A CSV file with thresholds of single labels, label,threshold; they take the place of --threshold."""

    top: int | None = None
    """Keep at most so many labels, the best; without it all, up to 100."""

    calibration: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A file of `annotary calibrate`: its temperature, and its thresholds where none are told."""

    def __post_init__(self) -> None:
        if not isinstance(self.multi_label, bool | np.bool_):
            raise ValueError(f"multi_label must be true or false, but got {self.multi_label!r}")
        if self.threshold is not None and not _is_share(self.threshold):
            raise ValueError(f"threshold must be in 0..1, but got {self.threshold!r}")
        if self.top is not None and (not isinstance(self.top, Integral) or self.top < 1):
            raise ValueError(f"top must be whole and at least 1, but got {self.top!r}")


class ZeroShot(AsksOneModel[DualEncoder]):
    """The task of zero-shot classification. All texts are embedded when it is made, and never again.

    Args:
        model: Embeds images and texts.
        labels: What is offered.
        options: Which labels an image gets.
        calibration: Corrects the scores.
        thresholds: Label to threshold 0..1, before those of the labels and the calibration.
        judge: Makes a decision of every image's scores.
        cache: Remembers the vectors of texts between runs.

    Attributes:
        truncated: Labels with a prompt that the model cannot read to its end.
        uncalibrated: Labels without a threshold of their own, where a calibration brings some for others.
        labels_compete: Whether the scores of labels depend on which others there are.
        always_wins: Whether there is one label, and nothing that it competes with.
        unlabelled: Images so far that have no labels in the table of each image's own.

    Raises:
        UsageError: A threshold is for no label, the calibration is that of another model, or background prompts are
            told to weights that judge each label by itself.
        ModelError: The model makes nothing of a label's prompts.
    """

    part = "labels"

    def __init__(
        self,
        model: DualEncoder,
        labels: LabelSet,
        options: ZeroShotOptions | None = None,
        *,
        calibration: Calibration | None = None,
        thresholds: Mapping[str, float] | None = None,
        judge: Judge | None = None,
        cache: TextCache | None = None,
    ) -> None:
        super().__init__(model)
        self._labels = labels
        self._options = options or ZeroShotOptions()
        self._calibration = calibration or Calibration(model.card.id, self._options.multi_label)
        self._judge = judge
        self._check_calibration()
        self._similarity = model.similarity
        self.labels_compete = self._similarity.kind == "softmax" and not self._options.multi_label
        self._background = self._background_prompts()
        backgrounds = [LabelClass(prompt, (prompt,)) for prompt in self._background]
        found = class_vectors(model, [*labels.classes, *backgrounds], cache)
        self._vectors = np.ascontiguousarray(found.vectors.T)
        self.truncated: tuple[str, ...] = tuple(
            label.name
            for label, truncated in zip(
                (*labels.classes, *backgrounds), found.is_truncated, strict=True
            )
            if truncated
        )
        self._names = labels.names
        self.always_wins = self.labels_compete and len(self._names) + len(self._background) == 1
        self.unlabelled = 0
        self._counting = threading.Lock()
        self._thresholds = self._every_threshold(thresholds or {})
        cuts = self._calibration.thresholds
        self.uncalibrated: tuple[str, ...] = tuple(
            name for name in self._names if cuts and name not in cuts
        )
        none = labels.none_label or ""
        self._none_threshold = self._threshold(none, None, thresholds or {})

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `labels` of every image, and its `decision` where there is a judge."""
        (batch,) = batches
        logits = self.logits(self._model.embed_images(batch))
        return [
            self._parts(picture.item, row) for picture, row in zip(pictures, logits, strict=True)
        ]

    def logits(self, images: Floats) -> Floats:
        """Calibrated logits float32[b, labels + background prompts] of unit vectors float32[b, d]."""
        cosines = images @ self._vectors
        similarity, calibration = self._similarity, self._calibration
        scaled = (cosines * similarity.scale + similarity.bias) / calibration.temperature
        return np.asarray(scaled, dtype=np.float32)

    def scores(self, logits: Floats) -> tuple[Floats, float]:
        """The scores 0..1 of some labels of one image, and that of none of them.

        Args:
            logits: float32[n], of the labels, and behind them of all background prompts.
        """
        count = len(logits) - len(self._background)
        own, background = logits[:count].astype(np.float64), logits[count:].astype(np.float64)
        if self.labels_compete:
            every = _softmax(np.concatenate([own, background]))
            return every[:count].astype(np.float32), float(min(1.0, every[count:].sum()))
        if self._similarity.kind == "softmax":
            own = own - _log_mean_exp(background)
        scores = _sigmoid(own + self._calibration.bias)
        return scores.astype(np.float32), float(np.prod(1.0 - scores))

    def settings(self) -> dict[str, Any]:
        """What the labels depend on beside the model, in one way of writing."""
        labels = self._labels
        return {
            "labels": _digest((label.name, *label.prompts) for label in labels.classes),
            "labels_of_image": labels.of_image and _digest(sorted(labels.of_image.items())),
            "background": list(self._background),
            "none_label": labels.none_label,
            "thresholds": _digest([*map(float, self._thresholds), self._none_threshold]),
            "multi_label": self._options.multi_label,
            "top": self._options.top,
            "temperature": self._calibration.temperature,
            "bias": self._calibration.bias,
            **({"policy": dict(self._judge.settings())} if self._judge is not None else {}),
        }

    def _parts(self, item: Item, logits: Floats) -> dict[str, Any]:
        places = self._places(item)
        own = logits if places is None else logits[places]
        scores, none = self.scores(own)
        names, thresholds = self._names, self._thresholds
        if places is not None:
            names = tuple(self._names[i] for i in places[: len(scores)])
            thresholds = self._thresholds[places[: len(scores)]]
        parts: dict[str, Any] = {"labels": self._chosen(names, scores, thresholds, none)}
        if self._judge is not None:
            every = dict(zip(names, map(_written, scores), strict=True))
            parts["decision"] = self._judge.decide(every)
        return parts

    def _places(self, item: Item) -> npt.NDArray[np.intp] | None:
        """Places of the logits of an image's own labels and of the background; None when it has all labels."""
        if self._labels.of_image is None:
            return None
        own = own_labels(self._labels.of_image, item)
        if not own:
            with self._counting:
                self.unlabelled += 1
        backgrounds = range(len(self._names), len(self._names) + len(self._background))
        return np.array([*own, *backgrounds], dtype=np.intp)

    def _chosen(
        self, names: Sequence[str], scores: Floats, thresholds: Floats, none: float
    ) -> tuple[Label, ...]:
        """The labels that an image gets, the best first; equal scores stay in the user's order."""
        most = self._options.top or MOST_LABELS
        kept = np.flatnonzero(scores >= thresholds)
        if len(kept) > 4 * most:  # far more than are wanted need no order
            border = np.partition(scores[kept], len(kept) - most)[len(kept) - most]
            kept = kept[scores[kept] >= border]
        kept = kept[np.argsort(-scores[kept], kind="stable")][:most]
        labels = [Label(names[int(i)], _written(scores[i])) for i in kept]
        name = self._labels.none_label
        if name is not None and none >= self._none_threshold:
            place = sum(label.score >= none for label in labels)
            labels.insert(place, Label(name, _written(min(1.0, max(0.0, none)))))
        return tuple(labels[:most])

    def _background_prompts(self) -> tuple[str, ...]:
        told = self._labels.background
        if self._similarity.kind == "sigmoid":
            if told:
                raise UsageError(
                    f"--background is for models whose labels compete; {self.source} judges each label by itself"
                )
            return ()
        is_needed = self._options.multi_label or self._labels.none_label is not None
        return told or (DEFAULT_BACKGROUND if is_needed else ())

    def _check_calibration(self) -> None:
        found = self._calibration
        name = self._model.card.name
        if found.model != name and not found.model.startswith(f"{name}@"):
            raise UsageError(f"--calibration is of {found.model}, but the model is {self.source}")
        if found.multi_label != self._options.multi_label:
            told = "with" if found.multi_label else "without"
            raise UsageError(f"--calibration was made {told} --multi-label; use it so")

    def _every_threshold(self, told: Mapping[str, float]) -> Floats:
        """One threshold a label."""
        if not isinstance(told, Mapping):
            raise UsageError(f"thresholds of labels are like {{'cat': 0.5}}, but got {told!r}")
        known = {*self._names, self._labels.none_label}
        for name, threshold in told.items():
            if name not in known:
                raise UsageError(f"a threshold is for {name!r}, which is no label")
            if not _is_share(threshold):
                raise UsageError(f"the threshold of {name!r} must be in 0..1, but is {threshold!r}")
        every = [
            self._threshold(label.name, label.threshold, told) for label in self._labels.classes
        ]
        return np.array(every, dtype=np.float32)

    def _threshold(self, name: str, own: float | None, told: Mapping[str, float]) -> float:
        """What is told of a label, else what its class says, the option, the calibration."""
        learned = self._calibration.thresholds.get(name)
        candidates = (told.get(name), own, self._options.threshold, learned)
        return next((one for one in candidates if one is not None), 0.0)


def own_labels(of_image: Mapping[str, tuple[int, ...]], item: Item) -> tuple[int, ...]:
    """The labels of one image in a table that names it as the input does, or below the folder that was asked for."""
    for name in (item.image, item.relative):
        if name and name in of_image:
            return of_image[name]
    return ()


def read_thresholds(path: Path) -> dict[str, float]:
    """A CSV file `label,threshold`, with or without a head.

    Raises:
        UsageError: It cannot be read, or a row is something else.
    """
    found: dict[str, float] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, cells in enumerate(csv.reader(file), 1):
                row = [cell.strip() for cell in cells]
                if not any(row) or (number == 1 and row[1:] == ["threshold"]):
                    continue
                if len(row) != 2:
                    raise ValueError(f"row {number} has {len(row)} cells")
                name, value = row
                if name in found:
                    raise ValueError(f"{name!r} is there twice")
                found[name] = float(value)
                if not 0.0 <= found[name] <= 1.0:
                    raise ValueError(f"the threshold of {name!r} must be in 0..1, but got {value}")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path}: a row must be label,threshold: {error}") from error
    return found


def _is_share(value: Any) -> bool:
    return isinstance(value, Real) and 0.0 <= float(value) <= 1.0


def _digest(values: Iterable[Any]) -> str:
    """What changes with values that are too many to be written out."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()[:16]


def _written(score: float) -> float:
    """A score in six digits: more is noise of float32. Small ones stay apart from 0, as those of SigLIP are small."""
    return float(f"{score:.6g}")


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not len(logits):
        return logits
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def _log_mean_exp(logits: npt.NDArray[np.float64]) -> float:
    highest = logits.max()
    return float(highest + np.log(np.mean(np.exp(logits - highest))))


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # exp of a large number would overflow; the half of a tanh is the same and does not
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))
