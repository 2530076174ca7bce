"""Boxes between a network's input and the image that it was made of, for every way of fitting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary import preprocess
from annotary.cards import PreprocessSpec

SPECS = [
    PreprocessSpec(size=(48, 48), fit="squash"),
    PreprocessSpec(size=(48, 96), fit="squash"),
    PreprocessSpec(size=(48, 48), fit="pad"),
    PreprocessSpec(size=(48, 80), fit="pad"),
    PreprocessSpec(size=(48, 48), fit="pad", pad_place="corner"),
    PreprocessSpec(size=(80, 48), fit="pad", pad_place="corner"),
    PreprocessSpec(size=(48, 48), fit="pad", pad_place="corner", resample="gaussian"),
    PreprocessSpec(size=(8, 8), fit="patches", patches=36),
    PreprocessSpec(size=(48, 48), fit="crop"),
    PreprocessSpec(size=(48, 64), fit="crop", crop_share=0.8, crop_corner="floor"),
]

sides = st.integers(1, 5000)
shares = st.lists(st.floats(0, 1), min_size=4, max_size=4)


@given(st.sampled_from(SPECS[:8]), sides, sides, shares)
def test_there_and_back(spec, width, height, shares):
    left, right = sorted(shares[:2])
    top, bottom = sorted(shares[2:])
    box = np.array([left * width, top * height, right * width, bottom * height])
    inside = preprocess.boxes_in_input(box, spec, width, height)
    assert (inside >= 0).all()
    assert (inside <= 1).all()
    back = preprocess.boxes_in_image(inside, spec, width, height)
    np.testing.assert_allclose(back, box, atol=1e-9 * max(width, height))


@given(st.sampled_from(SPECS), sides, sides, shares)
def test_boxes_never_leave_the_image(spec, width, height, shares):
    found = preprocess.boxes_in_image(np.array(shares) * 3 - 1, spec, width, height)
    assert (found >= 0).all()
    assert (found <= (width, height, width, height)).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("size", [(160, 60), (60, 160), (96, 96), (101, 47)])
def test_what_is_somewhere_in_the_image_is_there_in_the_input(spec, size):
    """A white rectangle is found where the arithmetic says, to a pixel of the input or of the image."""
    width, height = size
    box = (round(width * 0.35), round(height * 0.3), round(width * 0.65), round(height * 0.8))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    black = PreprocessSpec(
        size=spec.size,
        fit=spec.fit,
        resample="gaussian" if spec.resample == "gaussian" else "bilinear",
        pad_colour=(0, 0, 0),
        pad_place=spec.pad_place,
        patches=spec.patches,
        crop_share=spec.crop_share,
        crop_corner=spec.crop_corner,
    )
    fitted = np.asarray(preprocess.fit(pixels, black), np.float64)[:, :, 0]
    rows, columns = (np.flatnonzero(fitted.max(axis=axis) > 127.5) for axis in (1, 0))
    tall, wide = fitted.shape
    expected = preprocess.boxes_in_input(np.array(box), spec, width, height)
    found = (columns[0] / wide, rows[0] / tall, (columns[-1] + 1) / wide, (rows[-1] + 1) / tall)
    np.testing.assert_allclose(found, expected, atol=max(1 / min(tall, wide), 1 / min(size)))
