"""annotary from Python: the same pipeline as the command line, with records as results."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary.cards import Card, Preset, Vocabulary
from annotary.errors import AnnotaryError, UsageError
from annotary.images import DecodeOptions, from_pillow
from annotary.models import Model, load_model
from annotary.pipeline import PipelineOptions, annotate
from annotary.records import Failure, Item, Record
from annotary.runtime import Choice, RuntimeOptions
from annotary.sources import Reader, SourceOptions, open_sources
from annotary.tasks.tagging import Tagging, TaggingOptions, tagger

if TYPE_CHECKING:
    from _typeshed import SupportsRead

ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | SupportsRead[bytes] | Image.Image"
    " | npt.NDArray[np.uint8] | Iterable[ImageInput]"
)
"""A path (of an image, a folder or a list of paths), a URL, encoded bytes or an open file of them, a Pillow image,
pixels uint8[H, W, 3] in RGB (also [H, W] grey and [H, W, 4] with alpha), or any iterable of these."""

Records: TypeAlias = Generator[Record, None, None]
"""Records as they come. Closing it ends the work."""


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
        preset: Preset | None = None,
        top: int | None = None,
        exclude: Iterable[str] = (),
        source_options: SourceOptions | None = None,
        decode_options: DecodeOptions | None = None,
    ) -> Records:
        """Tag images, lazily and in the order of the input.

        Args:
            images: What to tag. An iterable is taken from in a thread of its own.
            threshold: Keep tags whose probability is at least this, 0..1. Takes the place of the preset.
            preset: `balanced` (the default), `precise` or `broad`.
            top: Keep at most this many tags.
            exclude: Leave out tags that match one of these patterns, such as "*fish*".
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` for every image, or a `Failure` where it could not be read; both have `ok`.

        Raises:
            UsageError: An option or the input makes no sense, or the model is no tagger. What is wrong with an element
                of an iterable is a `Failure`.
        """
        patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        try:
            options = TaggingOptions(threshold, preset, top, patterns)
        except ValueError as error:
            raise UsageError(str(error)) from error
        task = Tagging(tagger(self._model), options)
        items = _items(images, source_options or SourceOptions(), _Names())
        return _run(
            items, task, source_options or SourceOptions(), decode_options or DecodeOptions()
        )


def load(name: str = "starter", *, threads: int | None = None) -> Annotator:
    """Load a model.

    Args:
        name: `starter`, or `dir:` and the path of a model directory.
        threads: Processor cores to use, at least 1; all that the process may use when nothing is said.

    Raises:
        UsageError: The name is unknown; the message lists what exists.
        ModelError: The model's files are missing, damaged or do not fit its card.
    """
    try:
        return Annotator(load_model(name, RuntimeOptions(threads=threads)))
    except ValueError as error:
        raise UsageError(str(error)) from error


def tag(images: ImageInput, model: str = "starter", **options: Any) -> Records:
    """Tag images with a model by name; see `Annotator.tag` for what is taken and given."""
    return load(model).tag(images, **options)


def _run(
    items: Iterator[Item | Failure],
    task: Tagging,
    source_options: SourceOptions,
    decode_options: DecodeOptions,
) -> Records:
    with Reader(source_options) as reader:
        pairs = annotate(items, [task], reader, decode_options, PipelineOptions())
        try:
            for _, record in pairs:
                yield record
        finally:
            pairs.close()


class _Names:
    """Names for images in memory: image-1, image-2, ..."""

    def __init__(self) -> None:
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"image-{self._count}"


def _items(images: ImageInput, options: SourceOptions, names: _Names) -> Iterator[Item | Failure]:
    """The items of an input.

    Raises:
        UsageError: It is nothing that can be an image.
    """
    if isinstance(images, str | os.PathLike):
        return open_sources([os.fspath(images)], options)
    if hasattr(images, "read"):
        images = images.read()
        if not isinstance(images, bytes):
            raise UsageError("cannot tag a file that is open for text; open it for bytes")
    if isinstance(images, bytes | bytearray | memoryview):
        return iter([Item(names.next(), data=bytes(images))])
    if isinstance(images, Image.Image | np.ndarray):
        return iter([Item(names.next(), pixels=_pixels(images))])
    if isinstance(images, Iterable):
        return _items_of_all(images, options, names)
    raise UsageError(f"cannot tag a {type(images).__name__}: give a path, bytes or an image")


def _items_of_all(
    images: Iterable[ImageInput], options: SourceOptions, names: _Names
) -> Iterator[Item | Failure]:
    """The items of all elements; one that is no image is a failure, so that the others are done."""
    for image in images:
        try:
            yield from _items(image, options, names)
        except (AnnotaryError, OSError, ValueError, TypeError, RecursionError) as error:
            name = os.fspath(image) if isinstance(image, str | os.PathLike) else names.next()
            yield Failure.of(name or "''", error)


def _pixels(image: Image.Image | npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """uint8[H, W, 3], RGB, upright."""
    if isinstance(image, Image.Image):
        return from_pillow(image)
    if image.dtype == np.uint8 and image.size and image.ndim == 3 and image.shape[2] == 3:
        return image
    if image.dtype == np.uint8 and image.size and (image.ndim == 2 or image.shape[2:] == (4,)):
        return from_pillow(Image.fromarray(image))
    raise UsageError(
        f"pixels must be uint8 [H, W, 3], [H, W] or [H, W, 4], but got {image.dtype} {list(image.shape)}"
    )
