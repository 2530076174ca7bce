"""What a model finds in images, and where, from Python."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from annotary.api._running import Records, run, told_truncated
from annotary.cards import Alpha
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.inputs import ImageInput, pixels_of
from annotary.models import Model
from annotary.sources import SourceOptions
from annotary.tasks.detection import Detection, DetectionOptions
from annotary.tasks.label_sets import LabelSet
from annotary.tasks.locating import detector
from annotary.tasks.queries import Example, templates_named
from annotary.tasks.text_cache import TextCache

ExampleInput: TypeAlias = "ImageInput | tuple[ImageInput, Sequence[float]]"
"""An image, or an image and where in it the thing is: left, top, right and bottom edge in pixels."""

_NAME = "example"


class Detecting:
    """The abilities of a model that finds things in images."""

    _models: tuple[Model, ...]
    _cache: Callable[[], TextCache] | None

    def detect(
        self,
        images: ImageInput,
        labels: str | Iterable[str] | Mapping[str, Any] | LabelSet | None = None,
        *,
        like: ExampleInput | Mapping[str, ExampleInput | list[ExampleInput]] | None = None,
        template: str | Sequence[str] | None = None,
        templates: str | os.PathLike[str] | None = None,
        threshold: float = 0.1,
        label_thresholds: Mapping[str, float] | None = None,
        nms: float | None = None,
        nms_scope: Literal["label", "all"] = "label",
        top: int | None = None,
        min_size: float = 0.0,
        multi_label: bool = False,
        tile: int | None = None,
        tile_overlap: float = 0.2,
        source_options: SourceOptions | None = None,
        decode_options: DecodeOptions | None = None,
    ) -> Records:
        """Find things in images, lazily and in the order of the input.

        What is looked for is embedded once, before the first image, however many images there are.

        Args:
            images: Where to look, as for `tag`.
            labels: "cat, dog", a list of labels, or an ontology: a mapping of prompts to labels, or of labels to lists
                of prompts.
            like: What is looked for by example: an image, or a pair of an image and a box in it, `(left, top, right,
                bottom)` in pixels of the upright image; or a mapping of names to such, or to lists of them. Without a
                name it is called as its file is.
            template: What a label is put in, `{}` being its place, or several, of which the mean of the logits is
                taken; without it labels are asked for as they are.
            templates: `owl` for the seven of OWL-ViT's evaluation, `imagenet`, or a file with one on each line.
            threshold: Keep boxes with a score above this, 0..1.
            label_thresholds: Thresholds of single labels, 0..1.
            nms: Of boxes that overlap by more than this, 0..1, keep the best; 1 keeps all. Without it all boxes of the
                model, but 0.3 with `like` and 0.5 with `tile`.
            nms_scope: Whether boxes of one label are compared, or all.
            top: Keep at most so many boxes of an image.
            min_size: Leave out boxes whose shorter side has fewer pixels.
            multi_label: Give a box every label that is above its threshold.
            tile: Look at larger images in tiles of this side in pixels, too.
            tile_overlap: Share of a tile's side that neighbours have in common, 0..0.9.
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` with `boxes` for every image, or a `Failure` where it could not be read.

        Raises:
            UsageError: An option or the input makes no sense, or the model finds no boxes.
            ImageError: An example cannot be read.
        """
        try:
            options = DetectionOptions(
                threshold=threshold,
                nms=nms,
                nms_scope=nms_scope,
                top=top,
                min_size=min_size,
                multi_label=multi_label,
                tile=tile,
                tile_overlap=tile_overlap,
            )
            if templates is not None:
                if template is not None:
                    raise UsageError("give template or templates, not both")
                template = templates_named(os.fspath(templates))
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(str(error)) from error
        model = detector(self._models[0])
        if labels is not None and not isinstance(labels, LabelSet):
            labels = LabelSet.of(labels, "{}" if template is None else template)
        elif template is not None:
            raise UsageError(
                "template and templates are for labels in words; a LabelSet has its own"
            )
        alpha = model.card.preprocess.alpha
        task = Detection(
            model,
            labels,
            options,
            examples=list(_examples(like, alpha, source_options, decode_options)),
            thresholds=label_thresholds,
            cache=self._cache and self._cache(),
        )
        if task.truncated:
            warnings.warn(told_truncated(task.truncated), stacklevel=2)
        return run(images, task, source_options, decode_options)


def _examples(
    told: Any,
    alpha: Alpha,
    source_options: SourceOptions | None,
    decode_options: DecodeOptions | None,
) -> Iterator[Example]:
    """Examples with their names.

    Raises:
        UsageError: One is none.
        ImageError: One cannot be read.
    """
    if told is None:
        return
    named = told.items() if isinstance(told, Mapping) else [(_name_of(told), told)]
    for name, some in named:
        for one in some if isinstance(some, list) else [some]:
            image, box = one if _has_box(one) else (one, None)
            pixels = pixels_of(cast(ImageInput, image), alpha, source_options, decode_options)
            edges = None if box is None else tuple(map(float, box))
            yield Example(name, pixels, cast("tuple[float, float, float, float] | None", edges))


def _has_box(told: Any) -> bool:
    """Whether something is an image and a box."""
    if not isinstance(told, tuple) or len(told) != 2 or not isinstance(told[1], list | tuple):
        return False
    return all(isinstance(edge, Real) for edge in told[1])


def _name_of(told: Any) -> str:
    image = told[0] if _has_box(told) else told
    return Path(image).stem if isinstance(image, str | os.PathLike) else _NAME
