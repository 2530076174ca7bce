"""What a detector is asked for: labels and example images as queries, made once a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotary import preprocess
from annotary.cards import PreprocessSpec
from annotary.errors import UsageError
from annotary.models._texts import Texts
from annotary.tasks.label_sets import (
    LabelClass,
    LabelOptions,
    LabelSet,
    read_labels,
    read_templates,
)
from annotary.tasks.locating import Detector, Queries, image_guided_detector
from annotary.tasks.text_cache import TextCache, key_of

OWL_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The templates of OWL-ViT's own evaluation (scenic, `label_ops.CLIP_BEST_PROMPT_TEMPLATES`), chosen for CLIP."""

_OWL = "owl"

_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """What is looked for."""

    labels: str | None = field(default=None, metadata={"metavar": "A,B,..."})
    """Labels, with commas between them."""

    labels_file: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A file with one label on each line."""

    ontology: Path | None = field(default=None, metadata={"metavar": "FILE"})
    """A YAML or JSON file that maps prompts to labels, `a milk bottle: bottle`, or labels to lists of prompts."""

    template: tuple[str, ...] = field(default=(), metadata={"metavar": "TEXT"})
    """What a label is put in, {} being its place; without it labels are asked for as they are. May be given several
    times: the mean of the logits is taken."""

    templates: str | None = field(default=None, metadata={"metavar": "owl|imagenet|FILE"})
    """The seven templates of OWL-ViT's evaluation, the 80 of ImageNet, or those of a file, one on each line."""

    def __post_init__(self) -> None:
        if self.template and self.templates:
            raise ValueError("templates take the place of --template; give one of them")
        LabelOptions(template=self.template)

    @property
    def has_labels(self) -> bool:
        """Whether any labels are told."""
        return any(told is not None for told in (self.labels, self.labels_file, self.ontology))


def read_queries(options: QueryOptions) -> LabelSet:
    """The labels that options tell.

    Raises:
        UsageError: None are told, or more than one way; a file cannot be read or makes no sense.
    """
    template, templates = options.template, options.templates
    if templates == _OWL:
        template, templates = OWL_TEMPLATES, None
    return read_labels(
        LabelOptions(
            options.labels,
            options.labels_file,
            options.ontology,
            template=template if template or templates else ("{}",),
            templates=templates,
        )
    )


def templates_named(told: str) -> tuple[str, ...]:
    """The templates of a name, `owl` or `imagenet`, or of a file.

    Raises:
        ValueError: A template has no place for the label, or there is none.
        OSError: The file cannot be read.
    """
    return OWL_TEMPLATES if told == _OWL else read_templates(told)


@dataclass(frozen=True, slots=True)
class Example:
    """An image, or a part of one, of what is looked for.

    Attributes:
        name: What boxes of it are labelled with; several examples may have one name.
        pixels: uint8[H, W, 3], RGB, upright.
        box: Left, top, right and bottom edge of the thing in pixels; None for the whole image.
    """

    name: str
    pixels: npt.NDArray[np.uint8] = field(repr=False, compare=False)
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise UsageError("an example needs a name that is not empty")
        if self.box is not None:
            _check_box(self.box, self.pixels.shape[1], self.pixels.shape[0])

    def digest(self) -> str:
        """What changes with the image and the box."""
        told = hashlib.sha256(repr((self.pixels.shape, self.box)).encode())
        told.update(np.ascontiguousarray(self.pixels).tobytes())
        return told.hexdigest()[:16]

    def in_input(self, spec: PreprocessSpec) -> npt.NDArray[np.float32]:
        """The thing float32[4], `xyxy`, 0..1 of the network's input."""
        height, width = self.pixels.shape[:2]
        box = np.array(self.box or (0, 0, width, height), np.float64)
        return preprocess.boxes_in_input(box, spec, width, height).astype(np.float32)


def read_box(text: str) -> tuple[float, float, float, float]:
    """The box of "x0,y0,x1,y1".

    Raises:
        UsageError: It is none.
    """
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"a box is left, top, right and bottom edge in pixels, such as 10,20,110,220; but got {text!r}"
        ) from error
    return left, top, right, bottom


def _check_box(box: Sequence[float], width: int, height: int) -> None:
    told = ",".join(f"{edge:g}" for edge in box)
    if len(box) != 4 or not np.isfinite(box).all():
        raise UsageError(f"a box is four numbers, left, top, right and bottom edge, but got {told}")
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise UsageError(
            f"the box {told} has no area; say left, top, right and bottom edge in pixels"
        )
    if left < 0 or top < 0 or right > width or bottom > height:
        raise UsageError(
            f"the box {told} is not within its image, which has {width} x {height} pixels"
        )


def queries_of_labels(
    model: Detector, classes: Sequence[LabelClass], cache: TextCache | None = None
) -> Texts:
    """Labels as queries: the mean of those of their prompts, which gives the mean of their logits.

    Args:
        model: What makes queries of texts.
        classes: The labels with their prompts.
        cache: Remembers queries of texts between runs.

    Returns:
        float32[n, d], of length 1 or less, and whether a prompt of the label was too long for the model.
    """
    prompts = list(dict.fromkeys(prompt for label in classes for prompt in label.prompts))
    keys = [key_of([prompt]) for prompt in prompts]
    known = {} if cache is None else cache.get(keys)
    lacking = [i for i, key in enumerate(keys) if key not in known]
    for some in (
        lacking[start : start + _TEXTS_AT_ONCE] for start in range(0, len(lacking), _TEXTS_AT_ONCE)
    ):
        found = model.embed_queries([prompts[i] for i in some])
        own = [keys[i] for i in some]
        pairs = zip(found.vectors, map(bool, found.is_truncated), strict=True)
        known.update(zip(own, pairs, strict=True))
        if cache is not None:
            cache.put(own, found)
    if len({len(known[key][0]) for key in keys}) > 1:
        # Somebody else wrote into the cache: what it says is not believed.
        return queries_of_labels(model, classes)
    of_prompt = {prompt: known[key] for prompt, key in zip(prompts, keys, strict=True)}
    vectors = [
        np.mean([of_prompt[prompt][0] for prompt in label.prompts], axis=0, dtype=np.float64)
        for label in classes
    ]
    truncated = [any(of_prompt[prompt][1] for prompt in label.prompts) for label in classes]
    return Texts(np.stack(vectors).astype(np.float32), np.array(truncated, np.bool_))


def queries_of_examples(model: Detector, examples: Sequence[Example]) -> Queries:
    """Examples as queries float32[n, d], one for each name; of several of one name the mean.

    Raises:
        UsageError: The model takes no examples.
    """
    guided = image_guided_detector(model)
    spec = model.card.preprocess
    of_name: dict[str, list[npt.NDArray[np.float32]]] = {}
    for example in examples:
        batch = preprocess.to_batch([preprocess.fit(example.pixels, spec)], spec)
        (query,) = guided.queries_like(batch, example.in_input(spec)[None])
        of_name.setdefault(example.name, []).append(query)
    means = [np.mean(found, axis=0, dtype=np.float64) for found in of_name.values()]
    return np.stack(means).astype(np.float32)
