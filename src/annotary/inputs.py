"""What is handed over as images, as items: paths, addresses, bytes, Pillow images, arrays, tensors, many of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary.cards import Alpha
from annotary.errors import AnnotaryError, ImageError, UsageError
from annotary.images import DecodeOptions, decode, from_pillow
from annotary.records import Failure, Item
from annotary.sources import Reader, SourceOptions, open_sources
from annotary.sources.folder import IMAGE_SUFFIXES

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


def items_of(
    images: ImageInput, options: SourceOptions, alpha: Alpha = "white"
) -> Iterator[Item | Failure]:
    """The items of an input, in its order; those without a name are called image-1, image-2, ...

    Args:
        images: The input.
        options: Which files of folders are taken, and how URLs are read.
        alpha: What becomes of transparency in Pillow images and arrays; of files it is a matter of decoding.

    Raises:
        UsageError: It is nothing that can be an image. An element of an iterable that is none is a `Failure`.
    """
    return _items(images, options, _Taking(alpha))


def side_of(told: str) -> tuple[Literal["image", "text"], str]:
    """Whether words name an image or are a text, and what it is.

    Args:
        told: The path of a file, an address, or a text; "image:" or "text:" before it says which.

    Raises:
        UsageError: It looks like the name of an image that is not there, or is empty.
    """
    kinds: tuple[Literal["image", "text"], ...] = ("image", "text")
    for kind in kinds:
        if told.startswith(f"{kind}:"):
            told_kind, told = kind, told.removeprefix(f"{kind}:").strip()
            if told:
                return told_kind, told
    if not told.strip():
        raise UsageError("say an image or a text; got nothing")
    if told.startswith(("http://", "https://")) or os.path.isfile(told):  # noqa: PTH113 - never raises
        return "image", told
    if os.path.isdir(told):  # noqa: PTH112 - never raises
        raise UsageError(f"{told} is a folder, not an image; if it is a text, say 'text:{told}'")
    if os.path.splitext(told)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
        raise UsageError(f"no such file: {told}; if it is a text, say 'text:{told}'")
    return "text", told


def pixels_of(
    image: ImageInput,
    alpha: Alpha = "white",
    source_options: SourceOptions | None = None,
    decode_options: DecodeOptions | None = None,
) -> npt.NDArray[np.uint8]:
    """One image in full size, uint8[H, W, 3], RGB, upright.

    Args:
        image: The input.
        alpha: What becomes of transparency where the options leave it open.
        source_options: How URLs are read.
        decode_options: How it is decoded.

    Raises:
        UsageError: It is no image, or several.
        ImageError: It cannot be read.
    """
    sources, decoding = source_options or SourceOptions(), decode_options or DecodeOptions()
    wanted = decoding.alpha_of(alpha)
    found = list(islice(items_of(image, sources, wanted), 2))
    name = f"{image}" if isinstance(image, str | os.PathLike) else "it"
    if len(found) != 1:
        told = "several" if found else "none"
        raise UsageError(f"an example is one image, but {name} is {told}")
    (item,) = found
    if isinstance(item, Failure):
        raise UsageError(f"{item.image}: {item.message}")
    if item.pixels is not None:
        return item.pixels
    try:
        with Reader(sources) as reader:
            return decode(reader.read(item), options=decoding, alpha=wanted).pixels
    except ImageError as error:
        raise type(error)(f"{item.image}: {error}") from error


class _Taking:
    """How images in memory are taken: their names, image-1, image-2, ..., and what becomes of transparency."""

    def __init__(self, alpha: Alpha) -> None:
        self.alpha = alpha
        self._count = 0

    def name(self) -> str:
        """The next name."""
        self._count += 1
        return f"image-{self._count}"


def _items(images: ImageInput, options: SourceOptions, taking: _Taking) -> Iterator[Item | Failure]:
    """The items of an input.

    Raises:
        UsageError: It is nothing that can be an image.
    """
    if isinstance(images, str | os.PathLike):
        return open_sources([os.fspath(images)], options)
    if hasattr(images, "read"):
        images = images.read()
        if not isinstance(images, bytes):
            raise UsageError(
                "cannot read images from a file that is open for text; open it for bytes"
            )
    if isinstance(images, bytes | bytearray | memoryview):
        return iter([Item(taking.name(), data=bytes(images))])
    if hasattr(images, "detach"):
        images = _array_of_tensor(images)
    if isinstance(images, Image.Image | np.ndarray):
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return _items_of_all(images, options, taking)
        return iter([Item(taking.name(), pixels=_pixels(images, taking.alpha))])
    if isinstance(images, Mapping):
        raise UsageError("cannot read images from a mapping: give its values")
    if isinstance(images, Iterable):
        return _items_of_all(images, options, taking)
    raise UsageError(
        f"cannot read an image from {type(images).__name__}: give a path, bytes or an image"
    )


def _items_of_all(
    images: Iterable[ImageInput], options: SourceOptions, taking: _Taking
) -> Iterator[Item | Failure]:
    """The items of all elements; one that is no image is a failure, so that the others are done."""
    for image in images:
        try:
            yield from _items(image, options, taking)
        except (AnnotaryError, OSError, ValueError, TypeError, RuntimeError) as error:
            name = os.fspath(image) if isinstance(image, str | os.PathLike) else taking.name()
            yield Failure.of(name or "''", error)


def _pixels(image: Image.Image | npt.NDArray[Any], alpha: Alpha) -> npt.NDArray[np.uint8]:
    """uint8[H, W, 3], RGB, upright."""
    if isinstance(image, Image.Image):
        return from_pillow(image, alpha)
    if image.dtype == np.uint8 and image.size and image.ndim == 3 and image.shape[2] == 3:
        return image
    if image.dtype == np.uint8 and image.size and (image.ndim == 2 or image.shape[2:] == (4,)):
        return from_pillow(Image.fromarray(image), alpha)
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
