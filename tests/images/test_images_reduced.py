"""JPEGs decoded at reduced scale: how large they stay, and how little the input changes."""

import io

import numpy as np
import pytest
from PIL import Image

from annotary.cards import PreprocessSpec
from annotary.images import REDUCING_GAP, DecodeOptions, decode
from annotary.preprocess import fit, needed_by_all, needed_size

MEAN_DIFFERENCE = 2.0
LARGEST_DIFFERENCE = {"jpeg": 24, "odd": 64}


@pytest.fixture(scope="module")
def jpeg(photo, encode):
    return encode(photo, "JPEG", quality=90)


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        ((107, 142), (150, 200)),
        ((108, 142), (300, 400)),
        ((107, 143), (300, 400)),
        ((214, 285), (300, 400)),
        ((428, 571), (600, 800)),
        ((429, 571), (1200, 1600)),
        ((1, 1), (150, 200)),
        ((5000, 5000), (1200, 1600)),
    ],
)
def test_the_least_scale_that_is_large_enough(needed, expected, jpeg):
    decoded = decode(jpeg, at_least=needed)
    assert decoded.pixels.shape[:2] == expected
    assert (decoded.width, decoded.height) == (1600, 1200)


def test_it_can_be_turned_off(jpeg):
    decoded = decode(jpeg, at_least=(10, 10), options=DecodeOptions(reduce=False))
    assert decoded.pixels.shape == (1200, 1600, 3)
    assert decode(jpeg).pixels.shape == (1200, 1600, 3)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_turned_images_keep_what_is_needed_upright(orientation, encode):
    data = encode(Image.new("RGB", (1600, 400)), "JPEG", exif=exif(orientation))
    turned = orientation >= 5
    seen = []

    def rule(width, height):
        seen.append((width, height))
        return (200, 50) if turned else (50, 200)

    decoded = decode(data, at_least=rule)
    assert seen == [(400, 1600) if turned else (1600, 400)]
    assert decoded.pixels.shape[:2] == ((400, 100) if turned else (100, 400))
    assert (decoded.width, decoded.height) == seen[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_odd_sizes_are_rounded_up(orientation, picture, encode):
    image = Image.fromarray(picture).resize((163, 133))
    data = encode(image, "JPEG", exif=exif(orientation))
    shape = decode(data, at_least=(1, 1)).pixels.shape[:2]
    assert shape == ((21, 17) if orientation >= 5 else (17, 21))


@pytest.fixture(scope="module")
def odd(photo, encode):
    """Sizes that divide by none of 2, 4 and 8."""
    return encode(photo[:1193, :1595], "JPEG", quality=90)


@pytest.mark.parametrize("name", ["jpeg", "odd"])
@pytest.mark.parametrize("how", ["squash", "pad", "crop"])
@pytest.mark.parametrize("side", [74, 100, 173, 260])
def test_the_input_is_nearly_that_of_the_full_decode(name, how, side, request):
    data = request.getfixturevalue(name)
    spec = PreprocessSpec(size=(side, side), fit=how, crop_share=0.875)
    reduced, full = decode(data, at_least=needed_by_all(spec)), decode(data)
    tall, wide = reduced.pixels.shape[:2]
    assert tall < full.height
    rows, columns = needed_size(spec, full.width, full.height)
    assert tall >= REDUCING_GAP * rows
    assert wide >= REDUCING_GAP * columns
    found = fit(reduced.pixels, spec, (reduced.width, reduced.height))
    difference = np.abs(found.astype(int) - fit(full.pixels, spec))
    assert difference.mean() < MEAN_DIFFERENCE
    assert difference.max() <= LARGEST_DIFFERENCE[name]


def test_full_decode_is_pillows_own(jpeg):
    with Image.open(io.BytesIO(jpeg)) as image:
        np.testing.assert_array_equal(decode(jpeg).pixels, np.asarray(image))
