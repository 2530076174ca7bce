"""Pictures with boxes in them, for people: labels that can be read at any size, and one colour a label.

Boxes and labels are drawn by supervision's annotators; where each label stands, in which colour, and how large
everything is, is decided here from the picture alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from annotary.cards import PreprocessSpec
from annotary.errors import MissingExtra, OutputError
from annotary.records import Box, Item
from annotary.sinks import safe_name, write_atomically
from annotary.tasks import Picture, Task

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Pixels = npt.NDArray[np.uint8]
_Size = tuple[float, float]

COLOURS = (
    *("#e6194b", "#3cb44b", "#4363d8", "#ffe119", "#f58231", "#911eb4", "#42d4f4", "#f032e6"),
    *("#bfef45", "#469990", "#fabed4", "#9a6324", "#800000", "#aaffc3", "#808000", "#ffd8b1"),
    *("#000075", "#dcbeff", "#a9a9a9", "#fffac8"),
)
"""Twenty colours that can be told apart, also by most who see few (S. Trubetskoy, "List of 20 Simple, Distinct Colors",
2017), the most different ones first. Labels take them in their order, and again from the beginning."""

_LINES = 280
"""A line is so many times thinner than the picture is large (the root of its area): 2 pixels of 640 x 480."""

_TEXTS = 40
"""The same for the size of letters, which has a lower limit."""

_SMALLEST_TEXT = 10
_SMALLER = (1.0, 0.8, 0.65)
"""How large letters are, at first, and where labels would hide each other."""

_TOLERATED = 0.05
"""Share of a label that another may hide before all are made smaller."""

_QUALITY = 92
_LONGEST_JPEG = 65_500
"""Pixels of a side that libjpeg writes."""

_MARK = "annotary-boxes"

_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf"),
    *("PingFang.ttc", "msgothic.ttc", "malgun.ttf", "segoeui.ttf"),
)
"""Fonts of systems, for letters that Pillow's own font lacks."""

_FONT_OF_PLOTS = "mpl-data/fonts/ttf/DejaVuSans.ttf"


def check_installed() -> None:
    """Check that pictures can be drawn.

    Raises:
        MissingExtra: supervision is not installed.
    """
    _library()


def draw_boxes(pixels: Pixels, boxes: Sequence[Box], names: Sequence[str] = ()) -> Pixels:
    """A picture with boxes in it.

    Args:
        pixels: uint8[H, W, 3], RGB; they stay as they are.
        boxes: In pixels of the picture, the best first: their labels stand in front.
        names: All labels, in an order that gives each its colour; those that are not among them get one by their name.

    Raises:
        MissingExtra: supervision is not installed.
    """
    if not boxes:
        return pixels.copy()
    supervision = _library()
    image = Image.fromarray(pixels)
    # What stands in front is drawn last.
    order = list(reversed(boxes))
    colours = _colours([box.label for box in order], names)
    palette = supervision.ColorPalette.from_hex(
        [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours]
    )
    ink = supervision.ColorPalette.from_hex([_ink(colour) for colour in colours])
    by_place = supervision.ColorLookup.INDEX
    root = (image.width * image.height) ** 0.5
    thickness = max(1, round(root / _LINES))
    # Half of a line lies on each side of an edge: at the edge of the picture it would be cut.
    inset = thickness // 2
    edges = np.array([box.xyxy for box in order], np.float64)
    most = (image.width - 1 - inset, image.height - 1 - inset)
    places = np.clip(edges.round(), inset, np.maximum(inset, (*most, *most)))
    drawn = supervision.BoxAnnotator(palette, thickness, by_place).annotate(
        image, supervision.Detections(xyxy=places)
    )
    lettering = _lettering(order, places, image.size)
    writer = supervision.RichLabelAnnotator(
        palette,
        by_place,
        ink,
        lettering.font,
        lettering.size,
        lettering.padding,
        supervision.Position.TOP_LEFT,
    )
    anchors = supervision.Detections(xyxy=lettering.anchors)
    return np.asarray(writer.annotate(drawn, anchors, list(lettering.texts)))


class _Lettering(NamedTuple):
    """How labels are written.

    Attributes:
        texts: What stands in them.
        font: A file; None for Pillow's own.
        size: Of the letters, in pixels.
        padding: Pixels around a text.
        anchors: float[n, 4], `xyxy`: a label stands upon the left of the upper edge of each.
    """

    texts: Sequence[str]
    font: str | None
    size: int
    padding: int
    anchors: npt.NDArray[np.float64]


def _lettering(
    boxes: Sequence[Box], places: npt.NDArray[np.float64], frame: tuple[int, int]
) -> _Lettering:
    """The largest letters whose labels leave each other readable, or the smallest.

    Args:
        boxes: The most important one last.
        places: float[n, 4]: where they are drawn.
        frame: Width and height of the picture.
    """
    told = [f"{_one_line(box.label)} {box.score:.2f}" for box in boxes]
    file = _font_for("".join(told))
    usual = (frame[0] * frame[1]) ** 0.5 / _TEXTS
    sizes = sorted({max(_SMALLEST_TEXT, round(usual * share)) for share in _SMALLER}, reverse=True)
    for size in sizes:
        font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
        padding = max(2, round(size / 5))
        texts, extents = _fitting(told, font, padding, frame[0])
        corners, hidden = _placed(places[::-1], extents[::-1], frame)
        if hidden <= _TOLERATED:
            break
    anchors = [
        (x, y + tall, x + 1, y + tall + 1)
        for (x, y), (_, tall) in zip(corners[::-1], extents, strict=True)
    ]
    return _Lettering(texts, file, size, padding, np.array(anchors))


def _colours(labels: Sequence[str], names: Sequence[str]) -> list[tuple[int, int, int]]:
    """The colour of each label, RGB 0..255."""
    places = {name: place for place, name in enumerate(names)}
    found = []
    for label in labels:
        digest = hashlib.blake2b(label.encode("utf-8", "backslashreplace"), digest_size=4).digest()
        place = places.get(label, int.from_bytes(digest, "big")) % len(COLOURS)
        code = COLOURS[place]
        found.append((int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)))
    return found


def _ink(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever stands out from a colour more (WCAG 2.2, contrast ratio)."""
    shares = [value / 255 for value in colour]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (light + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


@lru_cache(maxsize=64)
def _font_for(text: str) -> str | None:
    """The file of a font that has the letters of a text, or most of them; None for Pillow's own, where it does."""
    letters = frozenset(letter for letter in text if not letter.isspace())
    lacking = {file: _lacking(font, letters) for file, font in _fonts().items()}
    return min(lacking, key=lambda file: lacking[file])


@lru_cache(maxsize=1)
def _fonts() -> dict[str | None, Any]:
    """Fonts by their files, Pillow's own first; of two that have as many letters the first is taken."""
    found: dict[str | None, Any] = {None: ImageFont.load_default(20)}
    names = list(_FONTS)
    if (plots := find_spec("matplotlib")) and plots.submodule_search_locations:
        # supervision needs it, and it brings a font with the letters of Europe.
        names[:0] = [f"{path}/{_FONT_OF_PLOTS}" for path in plots.submodule_search_locations]
    for name in names:
        with contextlib.suppress(OSError):
            font = ImageFont.truetype(name, 20)
            found[str(font.path)] = font
    return found


def _lacking(font: Any, letters: frozenset[str]) -> int:
    """How many letters a font lacks: it draws them as it draws what no font has."""
    none = bytes(font.getmask("\U0010fffe"))
    return sum(bytes(font.getmask(letter)) == none for letter in letters)


def _fitting(
    texts: Sequence[str], font: FreeTypeFont | ImageFont.ImageFont, padding: int, width: int
) -> tuple[list[str], list[_Size]]:
    """Texts that are not wider than the picture, and how large they are with what is around them."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    found, sizes = [], []
    for text in texts:
        name, _, score = text.rpartition(" ")
        shorter = text
        while (box := draw.textbbox((0, 0), shorter, font=font))[2] + 2 * padding > width and name:
            name = name[:-1]
            shorter = f"{name.rstrip()}… {score}"
        found.append(shorter)
        # As the annotator counts it.
        sizes.append(
            (int(box[2] - box[0] + 2 * padding) + 1.0, int(box[3] - box[1] + 2 * padding) + 1.0)
        )
    return found, sizes


def _placed(
    boxes: npt.NDArray[np.float64], sizes: Sequence[_Size], frame: tuple[int, int]
) -> tuple[list[tuple[float, float]], float]:
    """The upper left corner of each label: by its box, in the picture, and off other labels and small boxes.

    Args:
        boxes: float[n, 4], the most important one first.
        sizes: Width and height of each label.
        frame: Width and height of the picture.

    Returns:
        The corners, and how much of a label another hides at most, as a share of it.
    """
    taken = np.zeros((0, 4))
    corners, worst = [], 0.0
    areas = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    for number, (wide, tall) in enumerate(sizes):
        wanted = np.array(list(_by_box(boxes[number], wide, tall)))
        inside = np.clip(wanted, 0.0, np.maximum(0.0, np.array(frame) - (wide, tall)))
        labels = np.concatenate([inside, inside + np.array([wide, tall])], axis=1)
        hidden = _shared(labels, taken).sum(axis=1) / (wide * tall)
        # What is smaller than a label would not be seen under it.
        small = (areas < 4 * wide * tall) & (np.arange(len(boxes)) != number)
        covered = (_shared(labels, boxes[small]) / areas[small]).sum(axis=1)
        is_moved = (inside != wanted).any(axis=1)
        cost = hidden + 0.3 * np.minimum(1.0, covered) + 0.02 * is_moved
        best = int(np.argmin(cost.round(2)))
        corners.append((float(inside[best, 0]), float(inside[best, 1])))
        worst = max(worst, float(hidden[best]))
        taken = np.vstack([taken, labels[best]])
    return corners, worst


def _by_box(
    box: npt.NDArray[np.float64], wide: float, tall: float
) -> Iterator[tuple[float, float]]:
    """Where the upper left corner of a box's label may be, best first: above it, in it, below it, beside it."""
    left, top, right, bottom = box
    yield from ((left, top - tall), (left, top), (right - wide, top - tall), (left, bottom))
    yield from ((right - wide, top), (left, bottom - tall), (right - wide, bottom - tall))
    yield from (
        (right, top),
        (left - wide, top),
        (right, bottom - tall),
        (left - wide, bottom - tall),
    )
    for step in range(2, 5):
        yield left, top - step * tall
        yield left, bottom + (step - 1) * tall


def _shared(
    labels: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The area float[n, m] that each label shares with each of others, all `xyxy`."""
    lower = np.maximum(labels[:, None, :2], others[None, :, :2])
    upper = np.minimum(labels[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.prod(np.maximum(upper - lower, 0.0), axis=2))


class _Named(NamedTuple):
    """Where pictures go.

    Attributes:
        path: The file.
        form: `JPEG` or `PNG`.
    """

    path: Path
    form: str


class Drawn:
    """A task that finds boxes, and has a picture with them written for every image.

    A picture has the name of its image below the folder that was asked for, is a PNG where that is one or is too long
    for a JPEG, and a JPEG else. It is written before the record is, so that every image that is done has one, also
    where a run was stopped. What is there and is no such picture of the same image is never written over.

    Args:
        task: Finds boxes.
        folder: Where pictures go.
        names: All labels, in an order that gives each its colour.

    Raises:
        MissingExtra: supervision is not installed.
    """

    part = "boxes"
    needs_pixels = True

    def __init__(self, task: Task, folder: Path, names: Sequence[str] = ()) -> None:
        check_installed()
        self._task = task
        self._folder = folder
        self._names = tuple(names)
        self._taken: dict[str, str] = {}
        self._naming = threading.Lock()

    @property
    def source(self) -> str:
        """The id of the card that answers."""
        return self._task.source

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How images are prepared."""
        return self._task.inputs

    @property
    def streams(self) -> int:
        """How many batches are worked on at once, at best."""
        return self._task.streams

    @property
    def batch_size(self) -> int:
        """How many images are taken at once, at best."""
        return self._task.batch_size

    def annotate(
        self, pictures: Sequence[Picture], *batches: npt.NDArray[np.generic]
    ) -> list[Mapping[str, Any]]:
        """What the task finds; pictures are written.

        Raises:
            OutputError: One cannot be written.
        """
        found = self._task.annotate(pictures, *batches)
        for picture, parts in zip(pictures, found, strict=True):
            assert picture.pixels is not None
            drawn = draw_boxes(picture.pixels, parts["boxes"], self._names)
            named = self._place(picture)
            write_atomically(named.path, _encoded(drawn, named.form, _mark(picture.item)))
        return found

    def _place(self, picture: Picture) -> _Named:
        """Where an image's picture goes."""
        item = picture.item
        is_long = max(picture.width, picture.height) > _LONGEST_JPEG
        with self._naming:
            for named in _candidates(item, self._folder, is_long=is_long):
                key = os.path.normcase(named.path).casefold()
                if self._taken.setdefault(key, item.image) != item.image:
                    continue
                if not os.path.lexists(named.path) or _is_of(named.path, item):
                    return named
        raise AssertionError("names never end")


def _candidates(item: Item, folder: Path, *, is_long: bool) -> Iterator[_Named]:
    """What the picture of an image may be called, best first.

    Args:
        item: The image.
        folder: Where pictures go.
        is_long: Whether a JPEG cannot hold it.
    """
    told = item.relative or urlsplit(item.image).path or item.image
    parts = [
        part for part in PurePosixPath(told.replace("\\", "/")).parts if part not in ("/", "..")
    ]
    *folders, name = [safe_name(part) for part in parts] or ["image"]
    stem, dot, suffix = name.rpartition(".")
    kind = suffix.lower() if stem and dot else ""
    form = "PNG" if kind == "png" or is_long else "JPEG"
    if kind not in (("png",) if is_long else ("png", "jpg", "jpeg")):
        stem, suffix = name, "png" if is_long else "jpg"
    below = folder.joinpath(*folders)
    yield _Named(below / f"{stem}.{suffix}", form)
    for number in range(1 << 32):
        digest = hashlib.blake2b(_name_of(item), digest_size=4, salt=number.to_bytes(4, "little"))
        yield _Named(below / f"{stem}-{digest.hexdigest()}.{suffix}", form)


def _name_of(item: Item) -> bytes:
    return item.image.encode("utf-8", "backslashreplace")


def _mark(item: Item) -> str:
    """What a picture says in itself of the image that it is of, without its name."""
    return f"{_MARK} {hashlib.blake2b(_name_of(item), digest_size=8).hexdigest()}"


def _is_of(path: Path, item: Item) -> bool:
    """Whether a file is the picture that an earlier run drew of an image."""
    try:
        with Image.open(path) as image:
            told = image.info.get("comment", image.info.get(_MARK, ""))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return (told.decode("latin-1") if isinstance(told, bytes) else told) == _mark(item)


def _encoded(pixels: Pixels, form: str, mark: str) -> bytes:
    image, data = Image.fromarray(pixels), io.BytesIO()
    try:
        if form == "PNG":
            info = PngImagePlugin.PngInfo()
            info.add_text(_MARK, mark)
            image.save(data, form, pnginfo=info)
        else:
            image.save(data, form, quality=_QUALITY, comment=mark.encode())
    except (OSError, ValueError) as error:
        raise OutputError(
            f"cannot draw a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels: {error}"
        ) from error
    return data.getvalue()


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            # It warns that it is slower without OpenCV, for which there are several packages that exclude each other.
            warnings.filterwarnings("ignore", "OpenCV", UserWarning)
            import supervision
    except ImportError as error:
        raise MissingExtra("Drawing pictures", "draw") from error
    return supervision
