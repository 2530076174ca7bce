"""What is handed over as images becomes items, as the model's weights want them; words are images or texts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from annotary.errors import UsageError
from annotary.inputs import items_of, side_of
from annotary.records import Item
from annotary.sources import SourceOptions

GLASS = np.array([[[10, 20, 30, 0], [40, 50, 60, 255]]], np.uint8)


@pytest.mark.parametrize("given", [GLASS, Image.fromarray(GLASS)], ids=["array", "pillow"])
@pytest.mark.parametrize(
    ("alpha", "hidden"), [("white", [255, 255, 255]), ("drop", [10, 20, 30])], ids=["white", "drop"]
)
def test_transparency_becomes_what_the_weights_want(given, alpha, hidden):
    (item,) = items_of(given, SourceOptions(), alpha)
    assert isinstance(item, Item)
    assert item.pixels is not None
    assert item.pixels.tolist() == [[hidden, [40, 50, 60]]]


def test_words_are_an_image_where_there_is_a_file(tmp_path):
    photo = tmp_path / "a cat.jpg"
    photo.write_bytes(b"")
    assert side_of(str(photo)) == ("image", str(photo))
    assert side_of("http://host/a.jpg") == ("image", "http://host/a.jpg")
    assert side_of("a cat") == ("text", "a cat")
    assert side_of("text:a.jpg") == ("text", "a.jpg")
    assert side_of("image:cat") == ("image", "cat")


@pytest.mark.parametrize("told", [".", "missing.jpg", " ", "", "text:", "image: "])
def test_what_is_neither_is_refused(told):
    with pytest.raises(UsageError):
        side_of(told)
