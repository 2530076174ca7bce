"""Open-vocabulary detection: where in an image is what words or example images say.

A detector gives a logit for each of many places and each query, and a box for each place. A place becomes a box of the
label that fits it best, when the probability, the sigmoid of its logit, is above a threshold: labels do not compete,
and a score is the same whatever else is asked for. Several prompts of a label have the mean of their logits, which is
what the mean of their queries gives, because a logit is linear in the query.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from annotary import preprocess
from annotary.cards import PreprocessSpec
from annotary.errors import UsageError
from annotary.records import Box
from annotary.tasks import Picture
from annotary.tasks.asking import AsksOneModel
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.locating import Detector, Located, Queries
from annotary.tasks.nms import kept_boxes
from annotary.tasks.queries import Example, queries_of_examples, queries_of_labels
from annotary.tasks.text_cache import TextCache
from annotary.tasks.tiles import Tile, is_cut, tiles_of, without_pieces

NMS_OF_EXAMPLES = 0.3
"""Overlap from which on one of two boxes goes, where examples are looked for and nothing was said: what OWL-ViT's
authors use, because many places are like an example, and not one only."""

NMS_OF_TILES = 0.5
"""The same where images are cut into tiles, which would else find things several times."""

_MOST_LOGITS = 1 << 25
"""Numbers of one answer of a detector, with `_MOST_PLACES` in an image: with 2,000 labels one image at a time."""

_MOST_PLACES = 5184
"""Of an image: 72 x 72 patches of the largest OWLv2."""

_Floats = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class DetectionOptions:
    """Which boxes an image gets."""

    threshold: float = 0.1
    """Keep boxes with a score above this, 0..1."""

    label_thresholds: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A CSV file with thresholds of single labels, label,threshold; they take the place of --threshold."""

    nms: float | None = field(default=None, metadata={"metavar": "OVERLAP"})
    """Of boxes that overlap by more than this (intersection over union, 0..1) keep the best; 1 keeps all. Without it
    all boxes of the model, but 0.3 with --like and 0.5 with --tile."""

    nms_scope: Literal["label", "all"] = "label"
    """Whether boxes of one label are compared, or all."""

    top: int | None = None
    """Keep at most so many boxes of an image, the best; without it all."""

    min_size: float = 0.0
    """Leave out boxes whose shorter side has fewer pixels."""

    multi_label: bool = False
    """Give a box every label that is above its threshold, and not the best one alone."""

    tile: int | None = field(default=None, metadata={"metavar": "PIXELS"})
    """Look at larger images in tiles of this side, too, so that small things are found."""

    tile_overlap: float = 0.2
    """Share of a tile's side that neighbours have in common, 0..0.9."""

    def __post_init__(self) -> None:
        for name, value, most in (
            ("threshold", self.threshold, 1.0),
            ("nms", 1.0 if self.nms is None else self.nms, 1.0),
            ("tile_overlap", self.tile_overlap, 0.9),
        ):
            if not _is_number(value) or not 0.0 <= value <= most:
                raise ValueError(f"{name} must be in 0..{most:g}, but got {value!r}")
        if self.nms_scope not in ("label", "all"):
            raise ValueError(f"nms_scope must be label or all, but got {self.nms_scope!r}")
        if not isinstance(self.multi_label, bool | np.bool_):
            raise ValueError(f"multi_label must be true or false, but got {self.multi_label!r}")
        if self.top is not None and (not isinstance(self.top, Integral) or self.top < 1):
            raise ValueError(f"top must be whole and at least 1, but got {self.top!r}")
        if not _is_number(self.min_size) or self.min_size < 0.0:
            raise ValueError(f"min_size must be pixels, 0 or more, but got {self.min_size!r}")
        if self.tile is not None and (not isinstance(self.tile, Integral) or self.tile < 32):
            raise ValueError(f"tile must be pixels, whole and at least 32, but got {self.tile!r}")


class Detection(AsksOneModel[Detector]):
    """The task of detection. All queries are made when it is, and never again.

    Args:
        model: Finds places.
        labels: What is looked for in words; None for examples alone.
        options: Which boxes an image gets.
        examples: What is looked for by example; the model must take examples (`locating.ImageGuidedDetector`).
        thresholds: Label to threshold 0..1, before those of the labels.
        cache: Remembers the queries of texts between runs.

    Attributes:
        names: What boxes may be labelled with: the labels in their order, then the names of the examples.
        truncated: Labels with a prompt that the model cannot read to its end.
        needs_pixels: Whether images are needed in full size, for tiles.
        empty: Boxes so far that were left out because nothing of them lies in their image.

    Raises:
        UsageError: Nothing is looked for, a name is that of a label and of an example, or a threshold is for none.
    """

    part = "boxes"

    def __init__(
        self,
        model: Detector,
        labels: LabelSet | None,
        options: DetectionOptions | None = None,
        *,
        examples: Sequence[Example] = (),
        thresholds: Mapping[str, float] | None = None,
        cache: TextCache | None = None,
    ) -> None:
        super().__init__(model)
        self._options = options or DetectionOptions()
        self._labels = labels
        self._examples = tuple(examples)
        self.names = _names(labels, self._examples)
        self._thresholds = self._every_threshold(thresholds or {})
        self.needs_pixels = self._options.tile is not None
        self.empty = 0
        self._counting = threading.Lock()
        queries: list[Queries] = []
        self.truncated: tuple[str, ...] = ()
        if labels is not None:
            found = queries_of_labels(model, labels.classes, cache)
            queries.append(found.vectors)
            self.truncated = tuple(
                name for name, cut in zip(labels.names, found.is_truncated, strict=True) if cut
            )
        if self._examples:
            queries.append(queries_of_examples(model, self._examples))
        self._queries = np.concatenate(queries)
        # A logit is above this where the probability is above the threshold, but for rounding.
        with np.errstate(divide="ignore"):
            cuts = np.log(self._thresholds) - np.log1p(-self._thresholds)
        self._cuts = np.asarray(cuts - 1e-4, np.float32)

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """The `boxes` of every image, the best first."""
        (batch,) = batches
        spec = self._model.card.preprocess
        answers: list[Mapping[str, Any]] = []
        for picture, located in zip(pictures, self._located(batch), strict=True):
            found = self._candidates(located, picture.width, picture.height)
            if self._options.tile is not None:
                found = self._with_tiles(found, picture, spec)
            answers.append({"boxes": self._chosen(found)})
        return answers

    def settings(self) -> dict[str, Any]:
        """What the boxes depend on beside the model, in one way of writing."""
        options = self._options
        classes = () if self._labels is None else self._labels.classes
        examples = [(example.name, example.digest()) for example in self._examples]
        told: dict[str, Any] = {
            "labels": _digest((label.name, *label.prompts) for label in classes),
            "threshold": float(self._thresholds[0]),
            "nms": self._overlap,
            "nms_scope": options.nms_scope,
            "top": options.top,
            "min_size": options.min_size,
            "multi_label": options.multi_label,
        }
        if len(set(self._thresholds)) > 1:
            told["thresholds"] = _digest(map(float, self._thresholds))
        if examples:
            told["examples"] = _digest(examples)
        if options.tile is not None:
            told |= {"tile": options.tile, "tile_overlap": options.tile_overlap}
        return told

    @property
    def _overlap(self) -> float | None:
        """From which overlap on one of two boxes goes; None where all stay."""
        if self._options.nms is not None:
            return None if self._options.nms == 1.0 else self._options.nms
        if self._examples:
            return NMS_OF_EXAMPLES
        return NMS_OF_TILES if self._options.tile is not None else None

    def _located(self, batch: npt.NDArray[np.generic]) -> list[Located]:
        """What the model finds in each image; not so many at once that all logits fill the memory."""
        at_once = max(1, _MOST_LOGITS // (len(self._queries) * _MOST_PLACES))
        found = []
        for start in range(0, len(batch), at_once):
            boxes, logits = self._model.locate(batch[start : start + at_once], self._queries)
            found += [Located(*pair) for pair in zip(boxes, logits, strict=True)]
        return found

    def _candidates(self, located: Located, width: int, height: int) -> _Found:
        """The boxes above their thresholds, in pixels of an image of a size."""
        is_above = located.logits > self._cuts
        places = np.flatnonzero(is_above.any(axis=1))
        logits = np.where(is_above[places], located.logits[places], -np.inf)
        if self._options.multi_label:
            rows, labels = np.nonzero(is_above[places])
        else:
            rows, labels = np.arange(len(places)), logits.argmax(axis=1)
        scores = 1.0 / (1.0 + np.exp(-logits[rows, labels].astype(np.float64)))
        spec = self._model.card.preprocess
        edges = preprocess.boxes_in_image(located.boxes[places[rows]], spec, width, height)
        boxes = _rounded(edges)
        is_kept = scores > self._thresholds[labels]
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        if empty := int((is_kept & ~has_area).sum()):
            with self._counting:
                self.empty += empty
        kept = is_kept & has_area
        return _Found(boxes[kept], scores[kept], labels[kept])

    def _with_tiles(self, whole: _Found, picture: Picture, spec: PreprocessSpec) -> _Found:
        """The boxes of an image, and of its tiles, without pieces of things that are there as a whole."""
        assert self._options.tile is not None
        assert picture.pixels is not None
        width, height = picture.width, picture.height
        tiles = tiles_of(width, height, self._options.tile, self._options.tile_overlap)
        parts, cut = [whole], [np.zeros(len(whole.scores), np.bool_)]
        size = max(1, self._model.batch_size)
        for some in (tiles[start : start + size] for start in range(0, len(tiles), size)):
            fitted = [preprocess.fit(_cut_out(picture.pixels, tile), spec) for tile in some]
            for tile, located in zip(
                some, self._located(preprocess.to_batch(fitted, spec)), strict=True
            ):
                found = self._candidates(located, tile.right - tile.left, tile.bottom - tile.top)
                boxes = _rounded(found.boxes + np.array([tile.left, tile.top] * 2))
                parts.append(found._replace(boxes=boxes))
                cut.append(is_cut(boxes, tile, width, height))
        every = _Found(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        return every.at(without_pieces(*every, np.concatenate(cut)))

    def _chosen(self, found: _Found) -> tuple[Box, ...]:
        """The boxes that an image gets, the best first; equal scores in the order of places and labels."""
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        found = found.at(
            np.flatnonzero(sides.min(axis=1, initial=np.inf) >= self._options.min_size)
        )
        if self._overlap is None:
            order = np.argsort(-found.scores, kind="stable")
        else:
            labels = found.labels if self._options.nms_scope == "label" else None
            order = kept_boxes(found.boxes, found.scores, labels, self._overlap)
        found = found.at(order[: self._options.top])
        return tuple(
            Box(self.names[label], round(float(score), 6), (left, top, right, bottom))
            for (left, top, right, bottom), score, label in zip(
                found.boxes.tolist(), found.scores, found.labels, strict=True
            )
        )

    def _every_threshold(self, told: Mapping[str, float]) -> _Floats:
        """One threshold a name: what is told of it, what its class says, or the option."""
        if not isinstance(told, Mapping):
            raise UsageError(f"thresholds of labels are like {{'cat': 0.5}}, but got {told!r}")
        for name, threshold in told.items():
            if name not in self.names:
                raise UsageError(f"a threshold is for {name!r}, which is no label")
            if not _is_number(threshold) or not 0.0 <= threshold <= 1.0:
                raise UsageError(f"the threshold of {name!r} must be in 0..1, but is {threshold!r}")
        classes = () if self._labels is None else self._labels.classes
        own = {label.name: label.threshold for label in classes if label.threshold is not None}
        usual = self._options.threshold
        return np.array([told.get(name, own.get(name, usual)) for name in self.names], np.float64)


class _Found(NamedTuple):
    """Boxes of one image.

    Attributes:
        boxes: float64[n, 4], `xyxy` in pixels of the upright image.
        scores: float64[n], 0..1.
        labels: int[n], which of the names each has.
    """

    boxes: _Floats
    scores: _Floats
    labels: _Labels

    def at(self, places: _Labels) -> _Found:
        """Some of them, in an order."""
        return _Found(self.boxes[places], self.scores[places], self.labels[places])


def _names(labels: LabelSet | None, examples: Sequence[Example]) -> tuple[str, ...]:
    """The names of labels and examples.

    Raises:
        UsageError: There are none, or one is that of both.
    """
    words = () if labels is None else labels.names
    shown = tuple(dict.fromkeys(example.name for example in examples))
    if not words and not shown:
        raise UsageError("say what to look for, such as --labels 'cat, dog', or --like IMAGE")
    if both := [name for name in shown if name in words]:
        raise UsageError(f"{both[0]!r} is a label and the name of an example; give it another")
    return (*words, *shown)


def _rounded(boxes: _Floats) -> _Floats:
    """Boxes to a thousandth of a pixel, which is more than any detector knows."""
    return np.asarray(boxes.round(3))


def _cut_out(pixels: npt.NDArray[np.uint8], tile: Tile) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(pixels[tile.top : tile.bottom, tile.left : tile.right])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _digest(values: Iterable[Any]) -> str:
    """What changes with values that are too many to be written out."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()[:16]
