"""Contact sheets: where pictures stand, what is grey, and that headings fit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from annotary.catalog.contact_sheet import Section, contact_sheet, thumbnail
from annotary.errors import UsageError


def encoded(colour, size, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG", **options)
    return file.getvalue()


def colours_of(sheet: Image.Image) -> dict[tuple[int, int, int], int]:
    return {colour: count for count, colour in sheet.getcolors(2**16)}


def test_pictures_stand_in_cells_and_missing_ones_are_grey():
    red = np.full((20, 30, 3), (255, 0, 0), np.uint8)
    blue = np.full((32, 32, 3), (0, 0, 255), np.uint8)
    sheet = contact_sheet(
        [Section("1  cats", "3 images", [red, None, blue]), Section("2  dogs", "", [blue])],
        side=32,
        columns=2,
    )
    colours = colours_of(sheet)
    assert colours[255, 0, 0] == 20 * 30
    assert colours[0, 0, 255] == 2 * 32 * 32
    assert colours[200, 200, 200] >= 32 * 32
    one, two = (contact_sheet([Section("1", "", [red] * n)], side=32, columns=2) for n in (2, 3))
    assert two.width == one.width
    assert two.height - one.height == 32 + 6


@pytest.mark.parametrize("title", ["w" * 500, "", "猫と犬", "café\n", "1  cats, dogs"])
def test_headings_are_cut_to_the_sheet(title):
    sheet = contact_sheet([Section(title, "9 images", [None])], side=64, columns=2)
    edge = np.asarray(sheet)[:, -8:]
    assert (edge == 255).all()


def test_sheets_that_no_file_can_hold_are_refused():
    with pytest.raises(UsageError, match=r"5,000 clusters make a picture of .* give a folder"):
        contact_sheet([Section("x", "", [None])] * 5000)


def test_thumbnails_are_upright_and_fit():
    assert thumbnail(encoded("red", (400, 100)), 64).shape == (16, 64, 3)
    assert thumbnail(encoded("red", (10, 10)), 64).shape == (10, 10, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert thumbnail(encoded("red", (400, 100), exif=exif), 64).shape == (64, 16, 3)
    assert thumbnail(b"no image") is None
