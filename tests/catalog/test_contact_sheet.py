"""Contact sheets: where pictures stand, what is grey, and that headings fit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from annotary.catalog.contact_sheet import Section, contact_sheet, save, thumbnail
from annotary.catalog.sheet_place import check_sheet_place, is_sheet
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


def test_captions_and_frames_stand_around_pictures():
    red = np.full((32, 32, 3), (255, 0, 0), np.uint8)
    captions = ["a/very/long/name/of/a/file.jpg", "b.jpg", "c.jpg"]
    plain = contact_sheet([Section("1", "", [red] * 3)], side=32, columns=2)
    told = contact_sheet([Section("1", "", [red] * 3, captions, 1)], side=32, columns=2)
    assert told.height - plain.height == 2 * 14
    assert colours_of(told)[255, 0, 0] == 3 * 32 * 32  # neither hides a picture
    frame = (np.asarray(told) == (0, 150, 60)).all(axis=2)
    rows, columns = np.nonzero(frame)
    assert np.ptp(rows) == np.ptp(columns) == 32 + 2 * 3 - 1
    assert (np.asarray(told)[:, -8:] == 255).all()


@pytest.mark.parametrize("suffix", ["jpg", "PNG"])
def test_a_sheet_replaces_nothing_but_a_sheet(tmp_path, suffix):
    sheet = contact_sheet([Section("1", "", [None])])
    place = tmp_path / "deep" / f"sheet.{suffix}"
    save(sheet, place)
    assert is_sheet(place)
    save(sheet, place)
    check_sheet_place(place, [tmp_path, tmp_path / "gone.jpg"])
    with pytest.raises(UsageError, match="is read; name another file"):
        check_sheet_place(place, [place])
    Image.new("RGB", (9, 9)).save(place)
    photo = place.read_bytes()
    assert not is_sheet(place)
    with pytest.raises(UsageError, match="is there and is no contact sheet; name another file"):
        save(sheet, place)
    assert place.read_bytes() == photo
    assert not is_sheet(tmp_path)


def test_thumbnails_are_upright_and_fit():
    assert thumbnail(encoded("red", (400, 100)), 64).shape == (16, 64, 3)
    assert thumbnail(encoded("red", (10, 10)), 64).shape == (10, 10, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert thumbnail(encoded("red", (400, 100), exif=exif), 64).shape == (64, 16, 3)
    assert thumbnail(b"no image") is None
