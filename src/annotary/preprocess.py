"""The one implementation of resize, pad, crop and normalise, for training and for inference.

Resizing is Pillow's, bit for bit: published weights were trained and measured with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from annotary.cards import PreprocessSpec

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""uint8[H, W, 3], RGB, upright."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_MAX_CANVAS_PIXELS = 2**28
"""A padded canvas up to this size (a square of 16,384) gives the exact result of the published
rule. Beyond, for very elongated images, the picture is resized before it is padded, which moves its
edges by at most half a pixel of the input."""

_MAX_RESIZED_PIXELS = 2**24
"""Up to this size `crop` resizes the whole image; beyond, only the middle, as if from the whole."""

_STRIP_PIXELS = 2**20
"""How many pixels of the padded canvas exist at a time."""

_ROWS_AT_ONCE = 16
"""Rows of the input, and columns, that the Gaussian filter makes at a time: of the numbers between them and the picture
most are then not 0, and little memory is taken however large the picture is."""

Fitted: TypeAlias = npt.NDArray[Any]
"""uint8[h, w, 3], RGB, as `fit` gives it; float32 for the filter `gaussian`."""


def fit(pixels: Pixels, spec: PreprocessSpec, full_size: tuple[int, int] | None = None) -> Fitted:
    """Bring a picture to the size of the network's input.

    Args:
        pixels: uint8[H, W, 3], RGB.
        spec: How; of it `size`, `fit`, `resample` and what belongs to the fit matter here.
        full_size: Width and height of the image that `pixels` is a reduced decode of. Then edges
            and padding lie where they would for the full image, to a fraction of a pixel.

    Returns:
        uint8[h, w, 3], RGB, with `(h, w) = spec.size`, or for `patches` whole multiples of it. It may be `pixels`
        itself, or read-only. For the filter `gaussian` float32, 0..255: published results come from numbers that
        were never rounded.
    """
    height, width = pixels.shape[:2]
    if spec.is_in_patches:
        return _fit_patches(pixels, spec, full_size or (width, height))
    if spec.resample == "gaussian":
        return _fit_gaussian(pixels, spec, full_size or (width, height))
    whole = spec.fit != "crop" or spec.crop_share == 1.0
    if (height, width) == spec.size and whole and full_size in (None, (width, height)):
        return pixels
    picture = _picture(Image.fromarray(pixels), full_size or (width, height))
    if spec.fit == "squash":
        return np.asarray(_resize(picture.image, spec.size, spec, (0, 0, *picture.extent)))
    return np.asarray(_pad(picture, spec) if spec.fit == "pad" else _crop(picture, spec))


def to_batch(images: Sequence[Fitted], spec: PreprocessSpec) -> npt.NDArray[Any]:
    """Stack fitted pictures into the network's input.

    Args:
        images: Pictures of `fit`, each uint8[h, w, 3], RGB, with `(h, w) = spec.size`, or multiples for `patches`;
            float32 for the filter `gaussian`.
        spec: How; of it `channel_order`, `layout`, `dtype`, `scale`, `mean` and `std` matter.

    Returns:
        [N, 3, h, w] or [N, h, w, 3], contiguous. uint8 holds 0..255 as they are; float32 holds
        `(value / scale - mean) / std`, to 1e-6 of what exact arithmetic gives. For `patches` it is
        float32[N, spec.patches, h * w * 3 + 2]: the values of a patch, row by row with the colours together, then its
        row and column in the picture. What is left over is 0 with row and column -1.

    Raises:
        ValueError: A picture has another shape or number type.
    """
    if spec.is_in_patches:
        return _patches(images, spec)
    height, width = spec.size
    numbers = np.dtype(np.float32 if spec.resample == "gaussian" else np.uint8)
    for image in images:
        if image.shape != (height, width, 3) or image.dtype != numbers:
            found = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"expected {numbers} [{height}, {width}, 3], but got {found}")
    channels_first = spec.layout == "nchw"
    shape = (3, height, width) if channels_first else (height, width, 3)
    batch: npt.NDArray[Any] = np.empty((len(images), *shape), spec.dtype)
    for image, target in zip(images, batch, strict=True):
        source = image[:, :, ::-1] if spec.channel_order == "bgr" else image
        if spec.dtype == "uint8":
            source = source if numbers == np.uint8 else np.rint(source)
            target[...] = source.transpose(2, 0, 1) if channels_first else source
        elif channels_first:
            for channel in range(3):
                mean, std = spec.mean[channel], spec.std[channel]
                _normalise(source[:, :, channel], spec.scale, mean, std, target[channel])
        else:  # whole rows at a time: over three values a loop would be ten times as slow
            means, stds = np.tile(spec.mean, width), np.tile(spec.std, width)
            rows = source.reshape(height, -1)
            _normalise(rows, spec.scale, means, stds, target.reshape(height, -1))
    return batch


def _normalise(
    values: Fitted, scale: float, mean: npt.ArrayLike, std: npt.ArrayLike, out: npt.NDArray[Any]
) -> None:
    """(values / scale - mean) / std in float32 and without another array."""
    scaled: npt.NDArray[Any] = values
    if scale != 1.0:
        scaled = np.divide(values, np.float32(scale), out=out, dtype=np.float32)
    np.subtract(scaled, np.asarray(mean, np.float32), out=out, dtype=np.float32)
    np.divide(out, np.asarray(std, np.float32), out=out)


def needed_size(spec: PreprocessSpec, width: int, height: int) -> tuple[int, int]:
    """How large a picture must be so that `fit` does not have to enlarge it more than it would the full image.

    Args:
        spec: Of the network.
        width: Of the full upright image in pixels.
        height: Of the full upright image in pixels.

    Returns:
        Height and width in pixels: what remains of the whole image after the resizing in `fit`.
    """
    rows, columns = spec.size
    if spec.is_in_patches:
        return _size_in_patches(spec, width, height)
    if spec.resample == "gaussian":
        return height, width  # how strong the blur is depends on the full size
    if spec.fit == "squash":
        return rows, columns
    if spec.fit == "pad":
        scale = min(rows / height, columns / width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    return _size_before_crop(spec, width, height)


def needed_by_all(*specs: PreprocessSpec) -> Callable[[int, int], tuple[int, int]]:
    """The `at_least` for `images.decode` when one decoded picture serves several networks.

    Args:
        *specs: One or more.

    Returns:
        A function of the full upright width and height, as `needed_size`.
    """

    def largest(width: int, height: int) -> tuple[int, int]:
        sizes = [needed_size(spec, width, height) for spec in specs]
        return max(rows for rows, _ in sizes), max(columns for _, columns in sizes)

    return largest


def boxes_in_image(
    boxes: npt.NDArray[Any], spec: PreprocessSpec, width: int, height: int
) -> npt.NDArray[np.float64]:
    """Boxes of the network's input, in the image that it was made of.

    Args:
        boxes: [..., 4], `xyxy`, 0..1 of the input.
        spec: How the image was prepared.
        width: Pixels of the full upright image.
        height: Pixels of the full upright image.

    Returns:
        float64[..., 4], `xyxy` in pixels of the upright image; what lies in the padding is cut off.
    """
    left, top, wide, tall = _shown(spec, width, height)
    pixels = np.asarray(boxes, np.float64) * (wide, tall, wide, tall) + (left, top, left, top)
    return np.clip(pixels, 0.0, (width, height, width, height))


def boxes_in_input(
    boxes: npt.NDArray[Any], spec: PreprocessSpec, width: int, height: int
) -> npt.NDArray[np.float64]:
    """Boxes of an image, in the network's input: the other way round than `boxes_in_image`.

    Args:
        boxes: [..., 4], `xyxy` in pixels of the upright image.
        spec: How the image is prepared.
        width: Pixels of the full upright image.
        height: Pixels of the full upright image.

    Returns:
        float64[..., 4], `xyxy`, 0..1 of the input; what the input does not show is cut off.
    """
    left, top, wide, tall = _shown(spec, width, height)
    shares = (np.asarray(boxes, np.float64) - (left, top, left, top)) / (wide, tall, wide, tall)
    return np.clip(shares, 0.0, 1.0)


def _shown(spec: PreprocessSpec, width: int, height: int) -> tuple[float, float, float, float]:
    """What the input shows, in pixels of the image: left, top, width and height; with padding it is more than all."""
    if spec.fit == "pad":
        wide, tall = _canvas(spec, width, height)
        left, top = _place(spec, (wide, tall), width, height)
        return -left, -top, wide, tall
    if spec.fit == "crop":
        rows, columns = _size_before_crop(spec, width, height)
        left, top = _crop_corner(spec, rows, columns)
        across, down = width / columns, height / rows
        return left * across, top * down, spec.size[1] * across, spec.size[0] * down
    return 0, 0, width, height


class _Picture(NamedTuple):
    """A picture and the image that it shows.

    Attributes:
        image: Of the size of the full image, or reduced.
        full: Width and height of the full image.
        scale: How many times smaller `image` is: 1, 2, 4 or 8.
        extent: What of `image` shows the full image, from the upper left. Where that does not
            divide evenly, libjpeg has rounded up, and the last column or row is only partly filled.
    """

    image: Image.Image
    full: tuple[int, int]
    scale: int
    extent: tuple[float, float]


def _picture(image: Image.Image, full: tuple[int, int]) -> _Picture:
    for scale in (1, 2, 4, 8):
        if image.size == (-(-full[0] // scale), -(-full[1] // scale)):
            return _Picture(image, full, scale, (full[0] / scale, full[1] / scale))
    raise ValueError(f"pixels of {image.size} cannot be a reduced decode of an image of {full}")


def _resize(
    image: Image.Image,
    size: tuple[int, int],
    spec: PreprocessSpec,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Resize all or a box (left, top, right, bottom) to (height, width)."""
    return image.resize((size[1], size[0]), _FILTERS[spec.resample], box)


def _pad(picture: _Picture, spec: PreprocessSpec) -> Image.Image:
    """Put the image on the smallest canvas of the input's shape, in its middle or corner, then resize the canvas.

    For a square input the middle is JoyTag's rule (README sample): side max(w, h), paste at ((side - w)
    // 2, (side - h) // 2), so that an odd pixel of padding goes right and down, then resize.
    """
    rows, columns = spec.size
    width, height = picture.full
    canvas = _canvas(spec, width, height)
    if canvas[0] * canvas[1] > _MAX_CANVAS_PIXELS * picture.scale**2:
        size = needed_size(spec, width, height)
        image = _resize(picture.image, size, spec, (0, 0, *picture.extent))
        picture, canvas = _picture(image, image.size), (columns, rows)
    image, (width, height), scale, _ = picture
    _fill_edge(picture, spec.pad_colour)
    left, top = (side / scale for side in _place(spec, canvas, width, height))
    # The image lies on whole pixels, so the canvas begins at a fraction of one if it was reduced.
    x, y = ceil(left), ceil(top)
    box = (x - left, y - top, x - left + canvas[0] / scale, y - top + canvas[1] / scale)
    # Pillow resizes along x, rounds to 8 bits, then along y. Doing both by hand gives the same
    # bits, and needs neither the whole canvas nor any work on its empty rows.
    narrow = Image.new("RGB", (columns, ceil(box[3])), spec.pad_colour)
    step = max(1, _STRIP_PIXELS // ceil(box[2]))
    for start in range(0, image.height, step):
        end = min(image.height, start + step)
        strip = Image.new("RGB", (ceil(box[2]), end - start), spec.pad_colour)
        strip.paste(image.crop((0, start, image.width, end)), (x, 0))
        strip = _resize(strip, (end - start, columns), spec, (box[0], 0, box[2], end - start))
        narrow.paste(strip, (0, y + start))
    return _resize(narrow, spec.size, spec, (0, box[1], columns, box[3]))


def _canvas(spec: PreprocessSpec, width: int, height: int) -> tuple[int, int]:
    """Width and height of the smallest canvas of the input's shape that an image fits on."""
    rows, columns = spec.size
    if width * rows >= height * columns:
        return width, max(height, round(width * rows / columns))
    return max(width, round(height * columns / rows)), height


def _place(
    spec: PreprocessSpec, canvas: tuple[int, int], width: int, height: int
) -> tuple[int, int]:
    """Left and top edge of an image on its canvas."""
    if spec.pad_place == "corner":
        return 0, 0
    return (canvas[0] - width) // 2, (canvas[1] - height) // 2


def _fill_edge(picture: _Picture, colour: tuple[int, int, int]) -> None:
    """Where the last column or row of a reduced image is only partly filled, pad the rest."""
    image, (width, height) = picture.image, picture.extent
    boxes = (
        (width % 1, (image.width - 1, 0, image.width, image.height)),
        (height % 1, (0, image.height - 1, image.width, image.height)),
    )
    for share, box in boxes:
        if share:
            edge = image.crop(box)
            image.paste(Image.blend(Image.new("RGB", edge.size, colour), edge, share), box)


def _size_before_crop(spec: PreprocessSpec, width: int, height: int) -> tuple[int, int]:
    """Height and width of the whole image after resizing for `crop`.

    As in torchvision: the shorter side becomes round(size / crop_share), the longer is rounded down. For an input
    that is not square, the side that needs the larger scale counts as the shorter.
    """
    rows, columns = (round(side / spec.crop_share) for side in spec.size)
    if rows * width >= columns * height:
        return rows, max(columns, int(rows * width / height))
    return max(rows, int(columns * height / width)), columns


def _crop(picture: _Picture, spec: PreprocessSpec) -> Image.Image:
    """Resize, then take the middle; its corner is rounded half to even as in torchvision, or as the card says."""
    rows, columns = spec.size
    tall, wide = _size_before_crop(spec, *picture.full)
    left, top = _crop_corner(spec, tall, wide)
    box = (left, top, left + columns, top + rows)
    if tall * wide <= _MAX_RESIZED_PIXELS:
        whole = _resize(picture.image, (tall, wide), spec, (0, 0, *picture.extent))
        return whole.crop(box)
    x, y = picture.extent[0] / wide, picture.extent[1] / tall
    right, bottom = min(picture.extent[0], box[2] * x), min(picture.extent[1], box[3] * y)
    return _resize(picture.image, spec.size, spec, (left * x, top * y, right, bottom))


def _crop_corner(spec: PreprocessSpec, tall: int, wide: int) -> tuple[int, int]:
    """Left and top edge of the middle of a resized image."""
    rows, columns = spec.size
    if spec.crop_corner == "floor":
        return (wide - columns) // 2, (tall - rows) // 2
    return round((wide - columns) / 2), round((tall - rows) / 2)


def _fit_gaussian(
    pixels: Pixels, spec: PreprocessSpec, full: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """The image in the corner of its canvas, blurred as far as it shrinks, then read between pixels.

    It is scikit-image's `resize` with antialiasing, as OWLv2's own code calls it and transformers does with SciPy
    (`Owlv2ImageProcessorPil.resize`): deviation (factor - 1) / 2 pixels, cut off after 4 of them; beyond its edges the
    canvas is mirrored. Blur and reading are sums of pixels with the same weights all along an axis, so that each
    row, and then each column, is a product of matrices that are 0 but for a band.
    """
    rows, columns = spec.size
    height, width = pixels.shape[:2]
    sides = _canvas(spec, *full)
    # Of a reduced picture the canvas is as much smaller.
    down = _weights(rows, sides[1] * height / full[1], height)
    across = _weights(columns, sides[0] * width / full[0], width)
    colour = np.asarray(spec.pad_colour, np.float32)
    made = np.zeros((rows, columns, 3), np.float32)
    for top in range(0, rows, _ROWS_AT_ONCE):
        target = made[top : top + _ROWS_AT_ONCE]
        band, first = down[top // _ROWS_AT_ONCE]
        if not band.shape[1]:  # from here on there is padding alone
            break
        # What is less the colour of the padding is 0 in the padding, and is left out.
        part = pixels[first : first + band.shape[1]].astype(np.float32) - colour
        tall = band @ part.reshape(len(part), -1)
        planes = np.ascontiguousarray(tall.reshape(len(target), width, 3).transpose(0, 2, 1))
        for number, (narrow, begin) in enumerate(across):
            if not narrow.shape[1]:
                break
            left = number * _ROWS_AT_ONCE
            some = planes[:, :, begin : begin + narrow.shape[1]].reshape(-1, narrow.shape[1])
            found = (some @ narrow.T).reshape(len(target), 3, len(narrow))
            target[:, left : left + len(narrow)] = found.transpose(0, 2, 1)
    made += colour
    return np.clip(made, 0.0, 255.0, out=made)


class _Band(NamedTuple):
    """How some rows of the input are made.

    Attributes:
        weights: float32[rows, pixels]: of neighbouring pixels.
        first: The first of them.
    """

    weights: npt.NDArray[np.float32]
    first: int


def _weights(count: int, side: float, present: int) -> list[_Band]:
    """How every row of the input is made of the pixels along a side.

    Args:
        count: Rows of the input.
        side: Pixels of the canvas.
        present: Pixels of it that the image takes; the others are left out.
    """
    factor = side / count
    last = ceil(side) - 1
    deviation = max(0.0, (factor - 1) / 2)
    radius = int(4.0 * deviation + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 / max(deviation, 1e-12) ** 2 * offsets.astype(np.float64) ** 2)
    kernel /= kernel.sum()
    bands = []
    for start in range(0, count, _ROWS_AT_ONCE):
        rows = np.arange(start, min(count, start + _ROWS_AT_ONCE))
        places = _mirrored((rows + 0.5) * factor - 0.5, last)
        lower = np.minimum(np.floor(places), max(0, last - 1)).astype(np.intp)
        share = places - lower
        # Each row takes from two blurred pixels, and each of those from pixels around it.
        pairs = np.stack([lower, np.minimum(lower + 1, last)], axis=1)
        taken = _mirrored(pairs[:, :, None] + offsets, last).astype(np.intp)
        weights = np.stack([1 - share, share], axis=1)[:, :, None] * kernel
        first, end = int(taken.min()), min(present, int(taken.max()) + 1)
        band = np.zeros((len(rows), int(taken.max()) + 1 - first))
        np.add.at(band, (np.arange(len(rows))[:, None, None], taken - first), weights)
        bands.append(_Band(band[:, : max(0, end - first)].astype(np.float32), first))
    return bands


def _mirrored(places: npt.NDArray[Any], last: int) -> npt.NDArray[Any]:
    """Places along a side, mirrored at the middle of its first and last pixel."""
    if last == 0:
        return np.zeros_like(places)
    around = np.abs(places) % (2 * last)
    mirrored: npt.NDArray[Any] = np.minimum(around, 2 * last - around)
    return mirrored


def _size_in_patches(spec: PreprocessSpec, width: int, height: int) -> tuple[int, int]:
    """Height and width after resizing for `patches`: the largest scale at which whole patches are not too many.

    It is found by halving, with the numbers of SigLIP 2's NaFlex (`get_image_size_for_max_num_patches` in
    transformers), so that the very same size comes out.
    """

    def scaled(scale: float) -> tuple[int, int]:
        rows, columns = spec.size
        return max(1, ceil(height * scale / rows)), max(1, ceil(width * scale / columns))

    least, most = 1e-6, 100.0
    while most - least >= 1e-5:
        scale = (least + most) / 2
        down, across = scaled(scale)
        if down * across <= spec.patches:
            least = scale
        else:
            most = scale
    down, across = scaled(least)
    # An image that is more elongated than all patches in a row does not fit at any scale.
    down, across = min(down, spec.patches), min(across, spec.patches)
    return down * spec.size[0], across * spec.size[1]


def _fit_patches(pixels: Pixels, spec: PreprocessSpec, full: tuple[int, int]) -> Pixels:
    size = _size_in_patches(spec, *full)
    if pixels.shape[:2] == size and full == (size[1], size[0]):
        return pixels
    picture = _picture(Image.fromarray(pixels), full)
    return np.asarray(_resize(picture.image, size, spec, (0, 0, *picture.extent)))


def _patches(images: Sequence[Pixels], spec: PreprocessSpec) -> npt.NDArray[np.float32]:
    """Pictures as rows of patches, with where each of them is."""
    rows, columns = spec.size
    values = rows * columns * 3
    batch = np.zeros((len(images), spec.patches, values + 2), np.float32)
    batch[:, :, values:] = -1.0
    for image, target in zip(images, batch, strict=True):
        down, across = image.shape[0] // rows, image.shape[1] // columns
        is_whole = image.shape == (down * rows, across * columns, 3) and image.dtype == np.uint8
        if not is_whole or not 0 < down * across <= spec.patches:
            found = f"{image.dtype} {list(image.shape)}"
            raise ValueError(
                f"expected uint8 of at most {spec.patches} patches of {rows} x {columns}, but got {found}"
            )
        source = image[:, :, ::-1] if spec.channel_order == "bgr" else image
        normal = np.empty(image.shape, np.float32)
        means, stds = np.tile(spec.mean, image.shape[1]), np.tile(spec.std, image.shape[1])
        flat = (source.reshape(len(image), -1), normal.reshape(len(image), -1))
        _normalise(flat[0], spec.scale, means, stds, flat[1])
        apart = normal.reshape(down, rows, across, columns, 3).swapaxes(1, 2)
        count = down * across
        target[:count, :values] = apart.reshape(count, values)
        target[:count, values] = np.repeat(np.arange(down), across)
        target[:count, values + 1] = np.tile(np.arange(across), down)
    return batch
