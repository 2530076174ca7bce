"""annotary from Python: the same pipeline as the command line, with records as results."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary import weights
from annotary.cards import Card, Preset, Vocabulary
from annotary.errors import AnnotaryError, UsageError
from annotary.images import DecodeOptions, from_pillow
from annotary.models import Model, load_model
from annotary.pipeline import PipelineOptions, annotate
from annotary.records import Failure, Item, Record
from annotary.runtime import Choice, RuntimeOptions
from annotary.sources import Reader, SourceOptions, open_sources
from annotary.tasks.ensemble import Ensemble
from annotary.tasks.tag_rules import TagRules
from annotary.tasks.tag_selection import TaggingOptions
from annotary.tasks.tagging import Scorer, SingleTagger, Tagging, tagger

if TYPE_CHECKING:
    from _typeshed import SupportsRead
    from torch import Tensor

ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | SupportsRead[bytes] | Image.Image"
    " | npt.NDArray[np.uint8] | Tensor | Iterable[ImageInput]"
)
"""A path (of an image, a folder, a list of paths, an archive), a URL, encoded bytes or an open file of them, a Pillow
image, pixels uint8[H, W, 3] in RGB (also [H, W] grey and [H, W, 4] with alpha), a torch tensor [3, H, W] of uint8
0..255 or of floats 0..1, a stack of such arrays or tensors, or any iterable of these."""

Records: TypeAlias = Generator[Record, None, None]
"""Records as they come. Closing it ends the work."""


class Annotator:
    """A model that is ready to annotate, with the abilities that it has; or several taggers that are asked together.

    Args:
        models: The loaded models, the first of which speaks for all.
    """

    def __init__(self, *models: Model) -> None:
        self._models = models
        self._ensemble: Scorer | None = None
        if len(models) > 1:
            self._ensemble = Ensemble([tagger(model) for model in models])

    def __repr__(self) -> str:
        choice = self.choice
        ids = "+".join(model.card.id for model in self._models)
        return f"Annotator({ids!r}, {choice.library}, {choice.device}, {choice.precision})"

    @property
    def card(self) -> Card:
        """What the model is and where it comes from; of several the first one's."""
        return self._models[0].card

    @property
    def choice(self) -> Choice:
        """What the model runs on, and why; of several the first one's."""
        return self._models[0].choice

    @property
    def vocabulary(self) -> Vocabulary:
        """The tags that are known.

        Raises:
            UsageError: The model is no tagger.
        """
        return self._scorer().vocabulary

    def tag(
        self,
        images: ImageInput,
        *,
        threshold: float | None = None,
        preset: Preset | None = None,
        top: int | None = None,
        exclude: str | Iterable[str] = (),
        keep: str | Iterable[str] = (),
        category_threshold: Mapping[str, float] | None = None,
        tag_thresholds: str | os.PathLike[str] | None = None,
        mcut: bool = False,
        min_tags: int | None = None,
        rating: Literal["out", "in", "first", "last"] = "out",
        aliases: str | os.PathLike[str] | None = None,
        replace: str | Iterable[str] = (),
        implications: str | os.PathLike[str] | None = None,
        drop_substrings: bool = False,
        spaces: bool = False,
        order: Literal["score", "vocabulary", "category"] = "score",
        first: str | Iterable[str] = (),
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
            keep: Keep only tags that match one of these patterns.
            category_threshold: Thresholds of single categories, 0..1: `{"character": 0.85}`.
            tag_thresholds: A CSV file with thresholds of single tags, `name,threshold`.
            mcut: Cut where the scores fall most steeply, in each category of each image.
            min_tags: Give at least this many tags, the best below their thresholds if need be.
            rating: What becomes of the rating of models that have one.
            aliases: A file of names and what to call them instead.
            replace: "old=new", or several: call a tag something else.
            implications: A file of what follows from what; what follows is left out.
            drop_substrings: Leave out tags whose words are all within a longer one.
            spaces: Write spaces for underscores, but leave faces such as ^_^ alone.
            order: What stands first.
            first: Patterns of tags that are moved to the front.
            source_options: Which files of folders are taken, and how URLs are read.
            decode_options: How images are decoded.

        Returns:
            An iterator of an `Annotation` for every image, or a `Failure` where it could not be read; both have `ok`.

        Raises:
            UsageError: An option or the input makes no sense, or the model is no tagger. What is wrong with an element
                of an iterable is a `Failure`.
        """
        try:
            options = TaggingOptions(
                threshold=threshold,
                preset=preset,
                top=top,
                exclude=_texts(exclude),
                keep=_texts(keep),
                category_threshold=_by_category(category_threshold),
                tag_thresholds=_path(tag_thresholds),
                mcut=mcut,
                min_tags=min_tags,
                rating=rating,
            )
            rules = TagRules(
                aliases=_path(aliases),
                replace=_texts(replace),
                implications=_path(implications),
                drop_substrings=drop_substrings,
                spaces=spaces,
                order=order,
                first=_texts(first),
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        task = Tagging(self._scorer(), options, rules)
        items = _items(images, source_options or SourceOptions(), _Names())
        return _run(
            items, task, source_options or SourceOptions(), decode_options or DecodeOptions()
        )

    def _scorer(self) -> Scorer:
        return self._ensemble or SingleTagger(tagger(self._models[0]))


def load(
    name: str | Sequence[str] = "starter",
    *,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto",
    runtime: Literal["auto", "onnxruntime", "openvino", "torch"] = "auto",
) -> Annotator:
    """Load a model, or several taggers that are asked together.

    Args:
        name: `starter`, another name of `annotary models`, `hf:OWNER/NAME`, or `dir:` and the path of a model
            directory. A model that is published elsewhere is fetched when it is not on disk yet. Several names: the
            mean of the taggers that know a tag.
        threads: Processor cores to use, at least 1; all that the process may use when nothing is said.
        device: Where networks run; `auto` takes a GPU when there is one that can be used.
        precision: Of the arithmetic; `auto` takes what is fast here and changes no result that matters.
        runtime: The library that runs networks; `auto` takes the fastest that is installed.

    Raises:
        UsageError: The name is unknown, and the message lists what exists; or what was asked cannot be had here.
        ModelError: The model's files are missing, damaged or do not fit its card.
    """
    try:
        options = RuntimeOptions(threads, device, precision, runtime)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not isinstance(name, str) and not isinstance(name, Sequence):
        raise UsageError(f"a model's name is text, such as 'dir:{name}', but got {name!r}")
    names = [name] if isinstance(name, str) else list(name)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"name at least one model, and each once; but got {names}")
    return Annotator(*(load_model(one, options) for one in names))


def list_models() -> tuple[str, ...]:
    """The models that are known by name, for `load`; `annotary models` tells more of each."""
    return tuple(weights.known())


def tag(images: ImageInput, model: str | Sequence[str] = "starter", **options: Any) -> Records:
    """Tag images with a model by name; see `Annotator.tag` for what is taken and given."""
    return load(model).tag(images, **options)


def _run(
    items: Iterator[Item | Failure],
    task: Tagging,
    source_options: SourceOptions,
    decode_options: DecodeOptions,
) -> Records:
    with (
        Reader(source_options) as reader,
        closing(annotate(items, [task], reader, decode_options, PipelineOptions())) as results,
    ):
        for result in results:
            yield result.record


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
    if hasattr(images, "detach"):
        images = _array_of_tensor(images)
    if isinstance(images, Image.Image | np.ndarray):
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return _items_of_all(images, options, names)
        return iter([Item(names.next(), pixels=_pixels(images))])
    if isinstance(images, Mapping):
        raise UsageError("cannot tag a mapping: give its values")
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
        except (AnnotaryError, OSError, ValueError, TypeError, RuntimeError) as error:
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


def _array_of_tensor(tensor: Any) -> npt.NDArray[np.uint8]:
    """uint8[H, W, C], or a stack of them, of a torch tensor [C, H, W] or [N, C, H, W] on any device.

    Raises:
        UsageError: It is neither uint8 nor floats in 0..1, or has another shape.
    """
    array = tensor.detach().cpu()
    if array.is_floating_point():
        array = array.float()  # bfloat16 has no counterpart in NumPy
    values = array.numpy()
    if values.ndim not in (3, 4) or values.shape[-3] not in (1, 3, 4) or not values.size:
        raise UsageError(
            f"a tensor must be [3, H, W] or [N, 3, H, W], but got {list(values.shape)}"
        )
    if values.dtype == np.float32:
        if not (values.min() >= 0.0 and values.max() <= 1.0):
            raise UsageError(
                "a tensor of floats must hold 0..1: give it before it is normalised, or clamp it"
            )
        values = np.rint(values * 255.0).astype(np.uint8)
    if values.dtype != np.uint8:
        raise UsageError(f"a tensor must hold uint8 0..255 or floats 0..1, but got {tensor.dtype}")
    values = np.moveaxis(values, -3, -1)
    return np.ascontiguousarray(values[..., 0] if values.shape[-1] == 1 else values)


def _path(told: str | os.PathLike[str] | None) -> Path | None:
    return None if told is None else Path(told)


def _by_category(told: Mapping[str, float] | None) -> tuple[str, ...]:
    if told is not None and not isinstance(told, Mapping):
        raise UsageError(f"category_threshold is like {{'character': 0.85}}, but got {told!r}")
    return tuple(f"{name}={value}" for name, value in (told or {}).items())


def _texts(told: str | Iterable[str] | None) -> tuple[str, ...]:
    if told is None:
        return ()
    return (told,) if isinstance(told, str) else tuple(told)
