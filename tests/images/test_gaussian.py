"""Images as OWLv2 wants them, against transformers' image processor on SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotary import preprocess
from annotary.cards import PreprocessSpec
from tests.encoders import quiet_transformers
from tests.owl import image_processor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def spec_of(side: int) -> PreprocessSpec:
    return PreprocessSpec(
        size=(side, side),
        fit="pad",
        pad_place="corner",
        pad_colour=(0, 0, 0),
        resample="gaussian",
        scale=255.0,
        mean=MEAN,
        std=STD,
    )


def prepared(pixels, side):
    spec = spec_of(side)
    return preprocess.to_batch([preprocess.fit(pixels, spec)], spec)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("side", "size"),
    [
        (96, (50, 30)),
        (96, (200, 130)),
        (96, (130, 200)),
        (96, (96, 96)),
        (96, (96, 40)),
        (96, (1000, 33)),
        (64, (640, 480)),
        (64, (63, 64)),
        (8, (1, 1)),
        (8, (2, 1)),
        (8, (3, 300)),
    ],
)
def test_the_same_numbers(side, size):
    pixels = noise(*size)
    with quiet_transformers():
        processor = image_processor("owlv2", side)
        expected = processor([pixels], return_tensors="np", input_data_format="channels_last")
    found = prepared(pixels, side)
    assert found.dtype == np.float32
    assert np.abs(found - expected.pixel_values).max() < 1e-5


@settings(max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([7, 16, 33]), st.integers(0, 9))
def test_the_same_numbers_for_any_size(width, height, side, seed):
    pixels = noise(width, height, seed)
    with quiet_transformers():
        processor = image_processor("owlv2", side)
        expected = processor([pixels], return_tensors="np", input_data_format="channels_last")
    assert np.abs(prepared(pixels, side) - expected.pixel_values).max() < 1e-5


def test_an_image_is_decoded_in_full():
    """How strong the blur is depends on the pixels that the image has."""
    assert preprocess.needed_size(spec_of(64), 4000, 3000) == (3000, 4000)


def test_a_reduced_image_lies_where_the_full_one_would():
    full = np.kron(noise(40, 24), np.ones((8, 8, 1), np.uint8))
    reduced = np.ascontiguousarray(full[::2, ::2])
    spec = spec_of(64)
    found = preprocess.fit(reduced, spec, (320, 192))
    assert np.abs(found - preprocess.fit(full, spec)).mean() < 12.0
    assert found[39:].max() < 1.0  # 192 of 320 pixels become 38.4 of 64
    assert found[37].max() > 0.0


def test_padding_of_another_colour_mixes_in_at_the_edge():
    spec = PreprocessSpec(
        size=(16, 16), fit="pad", pad_place="corner", pad_colour=(10, 20, 30), resample="gaussian"
    )
    found = preprocess.fit(np.full((50, 100, 3), 200, np.uint8), spec)
    np.testing.assert_allclose(found[12:], np.broadcast_to([10, 20, 30], (4, 16, 3)), atol=1e-3)
    np.testing.assert_allclose(found[:4], 200.0, atol=1e-3)


def test_other_filters_take_the_corner_too():
    spec = PreprocessSpec(size=(16, 16), fit="pad", pad_place="corner", pad_colour=(0, 0, 0))
    found = preprocess.fit(np.full((32, 64, 3), 200, np.uint8), spec)
    assert found.dtype == np.uint8
    assert (found[:5] == 200).all()
    assert (found[10:] == 0).all()


def test_the_gaussian_is_for_the_corner_alone():
    with pytest.raises(ValueError, match="pad_place"):
        PreprocessSpec(size=(16, 16), fit="pad", resample="gaussian")
    with pytest.raises(ValueError, match="pad_place must be one of"):
        PreprocessSpec(size=(16, 16), fit="pad", pad_place="left")
    with pytest.raises(ValueError, match="expected float32"):
        preprocess.to_batch([np.zeros((16, 16, 3), np.uint8)], spec_of(16))
