"""annotary from Python: the same pipeline as the command line, with records as results."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary.cards import Card, Vocabulary
from annotary.errors import UsageError
from annotary.images import DecodeOptions
from annotary.models import Model, load_model
from annotary.pipeline import PipelineOptions, annotate
from annotary.records import Failure, Item, Record
from annotary.runtime import Choice, RuntimeOptions
from annotary.sources import Reader, SourceOptions, open_sources
from annotary.tasks.tagging import Tagging, TaggingOptions, tagger

ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8] | Iterable[ImageInput]"
)
"""A path (of an image, a folder or a list of paths), a URL, encoded bytes, a Pillow image, pixels uint8[H, W, 3] in
RGB, or any iterable of these."""


class Annotator:
    """A model that is ready to annotate, with the abilities that it has.

    Args:
        model: The loaded model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    @property
    def card(self) -> Card:
        """What the model is and where it comes from."""
        return self._model.card

    @property
    def choice(self) -> Choice:
        """What the model runs on, and why."""
        return self._model.choice

    @property
    def vocabulary(self) -> Vocabulary:
        """The tags that it knows.

        Raises:
            UsageError: The model is no tagger.
        """
        return tagger(self._model).vocabulary

    def tag(
        self,
        images: ImageInput,
        *,
        threshold: float | None = None,
        preset: str | None = None,
        top: int | None = None,
        exclude: Iterable[str] = (),
        source_options: SourceOptions | None = None,
        decode_options: DecodeOptions | None = None,
    ) -> Iterator[Record]:
        """Tag images, lazily and in the order of the input.

        Args:
            images: What to tag.
            threshold: Keep tags whose probability is at least this, 0..1. Takes the place of the preset.
            preset: `balanced` (the default), `precise` or `broad`.
            top: Keep at most this many tags.
            exclude: Leave out tags that match one of these patterns.
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` for every image, or a `Failure` where it could not be read; both have `ok`.

        Raises:
            UsageError: An option or an input makes no sense, or the model is no tagger.
        """
        options = TaggingOptions(threshold, preset, top, tuple(exclude))
        task = Tagging(tagger(self._model), options)
        return _run(images, task, source_options or SourceOptions(), decode_options)


def load(name: str = "starter", *, threads: int | None = None) -> Annotator:
    """Load a model.

    Args:
        name: `starter`, or `dir:` and the path of a model directory.
        threads: Processor cores to use; all that the process may use when nothing is said.

    Raises:
        UsageError: The name is unknown; the message lists what exists.
        ModelError: The model's files are missing, damaged or do not fit its card.
    """
    return Annotator(load_model(name, RuntimeOptions(threads=threads)))


def tag(images: ImageInput, model: str = "starter", **options: Any) -> Iterator[Record]:
    """Tag images with a model by name; see `Annotator.tag` for what is taken and given."""
    return load(model).tag(images, **options)


def _run(
    images: ImageInput, task: Tagging, source_options: SourceOptions, decode: DecodeOptions | None
) -> Iterator[Record]:
    items = _items(images, source_options, _Numbers())
    with Reader(source_options) as reader:
        pairs = annotate(items, [task], reader, decode or DecodeOptions(), PipelineOptions())
        for _, record in pairs:
            yield record


class _Numbers:
    """Names for images in memory: image-1, image-2, ..."""

    def __init__(self) -> None:
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"image-{self._count}"


def _items(
    images: ImageInput, options: SourceOptions, numbers: _Numbers
) -> Iterator[Item | Failure]:
    if isinstance(images, str | os.PathLike):
        yield from open_sources([os.fspath(images)], options)
    elif isinstance(images, bytes):
        yield Item(numbers.next(), data=images)
    elif isinstance(images, Image.Image):
        encoded = io.BytesIO()
        images.save(encoded, "PNG")
        yield Item(numbers.next(), data=encoded.getvalue())
    elif isinstance(images, np.ndarray):
        yield Item(numbers.next(), pixels=images)
    elif isinstance(images, Iterable):
        for image in images:
            yield from _items(image, options, numbers)
    else:
        raise UsageError(f"cannot tag a {type(images).__name__}: give a path, bytes or an image")
