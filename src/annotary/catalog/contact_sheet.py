"""Contact sheets: a picture with images in rows under headings, such as clusters under their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from annotary import images
from annotary.catalog.sheet_place import MARK, check_sheet_place
from annotary.errors import ImageError, OutputError, UsageError
from annotary.images import DecodeOptions
from annotary.sinks._atomic import replacing

Pixels = npt.NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png")

MOST_SIDE = 65_000
"""Pixels of the longer side; JPEG holds 65,535."""

_GAP = 6
_MARGIN = 12
_HEADING = 22
_CAPTION = 14
_BACKGROUND, _INK, _PALE, _MISSING = "white", "black", (110, 110, 110), (200, 200, 200)
_FRAME = (0, 150, 60)
_LONGEST = 600  # characters of a line that are looked at

# Fonts that have letters of more scripts than the one in Pillow, as systems name them.
_WIDE_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "msyh.ttc"),
    *("PingFang.ttc", "Arial Unicode.ttf", "DroidSansFallbackFull.ttf", "DejaVuSans.ttf"),
)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a sheet.

    Attributes:
        title: The heading.
        detail: Stands beside it, paler.
        pictures: uint8[h, w, 3], RGB, each at most as large as a cell; None for one that cannot be shown.
        captions: What stands under each picture; empty for a sheet without.
        framed: How many of the first pictures have a frame.
    """

    title: str
    detail: str
    pictures: Sequence[Pixels | None]
    captions: Sequence[str] = ()
    framed: int = 0

    def height(self, *, side: int = 128, columns: int = 8) -> int:
        """Pixels that it takes of a sheet with such cells."""
        rows = max(1, -(-len(self.pictures) // columns))
        return _HEADING + _GAP + rows * (side + _GAP + self.caption_height)

    @property
    def caption_height(self) -> int:
        """Pixels under every picture."""
        return _CAPTION if self.captions else 0


def contact_sheet(sections: Sequence[Section], *, side: int = 128, columns: int = 8) -> Image.Image:
    """A picture of sections one below the other, each a heading and rows of square cells.

    A picture that cannot be shown is a grey cell.

    Args:
        sections: From above.
        side: Of a cell, pixels.
        columns: Cells beside each other.

    Raises:
        UsageError: It would be higher than a picture can be.
    """
    heights = [section.height(side=side, columns=columns) for section in sections]
    width = 2 * _MARGIN + columns * (side + _GAP) - _GAP
    height = 2 * _MARGIN + sum(heights)
    if max(height, width) > MOST_SIDE:
        raise UsageError(
            f"{len(sections):,} clusters make a picture of {height:,} pixels, which is too high;"
            " give a folder instead, for a picture of each"
        )
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for section, taken in zip(sections, heights, strict=True):
        _write(draw, (_MARGIN, top), section, width - 2 * _MARGIN)
        for place, picture in enumerate(section.pictures):
            row, column = divmod(place, columns)
            x = _MARGIN + column * (side + _GAP)
            y = top + _HEADING + _GAP + row * (side + _GAP + section.caption_height)
            if picture is None:
                draw.rectangle((x, y, x + side - 1, y + side - 1), fill=_MISSING)
            else:
                shown = Image.fromarray(picture)
                at = (x + (side - shown.width) // 2, y + (side - shown.height) // 2)
                sheet.paste(shown, at)
            if place < section.framed:
                draw.rectangle((x - 3, y - 3, x + side + 2, y + side + 2), outline=_FRAME, width=3)
            if place < len(section.captions):
                _caption(draw, (x, y + side + 2), section.captions[place], side)
        top += taken
    return sheet


def thumbnail(data: bytes, side: int = 128, options: DecodeOptions | None = None) -> Pixels | None:
    """An encoded image fitted into a square cell, upright, uint8[h, w, 3]; None when it cannot be read."""
    try:
        decoded = images.decode(data, at_least=(side, side), options=options or DecodeOptions())
    except (ImageError, MemoryError):
        return None
    picture = Image.fromarray(decoded.pixels)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def save(sheet: Image.Image, path: Path) -> None:
    """Write a sheet, whole or not at all, with the mark by which a later run knows that it may replace it.

    Args:
        sheet: The picture.
        path: A file that ends in one of `SUFFIXES`; folders that are missing are made.

    Raises:
        UsageError: Something else is there.
        OutputError: It cannot be written.
    """
    check_sheet_place(path)
    try:
        with replacing(path) as file:
            if path.suffix.lower() == ".png":
                told = PngInfo()
                told.add_text("Comment", MARK.decode())
                sheet.save(file, "PNG", pnginfo=told)
            else:
                sheet.save(file, "JPEG", quality=90, comment=MARK)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], section: Section, room: int) -> None:
    """The heading, cut where it would be longer than the sheet is wide."""
    font = _font(section.title.isascii(), 16)
    detail = f"   {section.detail}" if section.detail else ""
    left = room - draw.textlength(detail, font=font)
    title = " ".join(section.title.split())[:_LONGEST]
    while title and draw.textlength(title, font=font) > left:
        title = title.removesuffix("…")[:-1] + "…" if len(title) > 1 else ""
    x, y = place
    draw.text((x, y), title, fill=_INK, font=font)
    draw.text((x + draw.textlength(title, font=font), y), detail, fill=_PALE, font=font)


def _caption(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, room: int) -> None:
    """A line under a picture, cut at its beginning, for the end of a file's path tells more."""
    font = _font(text.isascii(), 11)
    text = " ".join(text.split())[-_LONGEST:]
    while text and draw.textlength(text, font=font) > room:
        text = "…" + text.removeprefix("…")[1:] if len(text) > 1 else ""
    draw.text(place, text, fill=_INK, font=font)


@cache
def _font(is_plain: bool, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; for other letters than ASCII one of the system's, if it has one."""
    for name in () if is_plain else _WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
