"""Resize, pad, crop and normalise: Pillow's bits, published rules, exact numbers."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary import preprocess
from annotary.cards import PreprocessSpec
from annotary.preprocess import fit, needed_by_all, needed_size, to_batch

FILTERS = ["nearest", "box", "bilinear", "bicubic", "lanczos"]
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.3231539)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resample(name):
    return Image.Resampling[name.upper()]


def padded_by_joytag(pixels, size, name="bicubic", colour=(255, 255, 255)):
    """The reference: the whole canvas, then one resize (JoyTag's README sample)."""
    image = Image.fromarray(pixels)
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas if side == size else canvas.resize((size, size), resample(name)))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shape", [(30, 50), (7, 5), (200, 333)])
def test_squash_is_pillows_resize(name, shape):
    pixels = noise(*shape)
    spec = PreprocessSpec(size=(24, 40), resample=name)
    expected = Image.fromarray(pixels).resize((40, 24), resample(name))
    np.testing.assert_array_equal(fit(pixels, spec), np.asarray(expected))


class TestPad:
    @pytest.mark.parametrize(
        ("width", "height", "rows", "columns"),
        [(5, 3, slice(1, 4), slice(0, 5)), (4, 5, slice(0, 5), slice(0, 4))],
    )
    def test_an_odd_pixel_goes_right_and_down(self, width, height, rows, columns):
        """JoyTag's golden cases: 5 x 3 begins in row 1, 4 x 5 in column 0."""
        pixels = np.zeros((height, width, 3), np.uint8)
        found = fit(pixels, PreprocessSpec(size=(5, 5), fit="pad"))
        expected = np.full((5, 5, 3), 255, np.uint8)
        expected[rows, columns] = 0
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("name", FILTERS)
    @pytest.mark.parametrize("shape", [(30, 50), (50, 31), (64, 64), (3, 200), (200, 3), (1, 1)])
    def test_bits_are_those_of_the_whole_canvas(self, name, shape):
        pixels = noise(*shape)
        for size in (7, 64, 100):
            spec = PreprocessSpec(size=(size, size), fit="pad", resample=name)
            np.testing.assert_array_equal(fit(pixels, spec), padded_by_joytag(pixels, size, name))

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(
        height=st.integers(1, 90),
        width=st.integers(1, 90),
        size=st.integers(1, 60),
        strip=st.integers(1, 3000),
        name=st.sampled_from(FILTERS),
        colour=st.tuples(*[st.integers(0, 255)] * 3),
    )
    def test_strips_do_not_show(self, height, width, size, strip, name, colour):
        pixels = noise(height, width, seed=size)
        spec = PreprocessSpec(size=(size, size), fit="pad", resample=name, pad_colour=colour)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(preprocess, "_STRIP_PIXELS", strip)
            found = fit(pixels, spec)
        np.testing.assert_array_equal(found, padded_by_joytag(pixels, size, name, colour))

    def test_a_wide_input(self):
        found = fit(np.zeros((10, 10, 3), np.uint8), PreprocessSpec(size=(10, 30), fit="pad"))
        assert (found[:, 10:20] == 0).all()
        assert (found[:, :10] == 255).all()
        assert (found[:, 20:] == 255).all()

    @pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000), (2_000_000, 1), (1, 2_000_000)])
    def test_elongated_images_take_little_memory(self, shape):
        found = fit(np.zeros((*shape, 3), np.uint8), PreprocessSpec(size=(64, 64), fit="pad"))
        line = found if shape[0] == 1 else found.swapaxes(0, 1)
        assert (line[31:33].min(axis=0) < 255).all()
        assert (line[:29] == 255).all()
        assert (line[35:] == 255).all()

    def test_the_way_of_elongated_images_is_near_the_exact_one(self, monkeypatch):
        pixels = np.asarray(Image.fromarray(noise(6, 8)).resize((300, 225)))
        spec = PreprocessSpec(size=(64, 64), fit="pad")
        exact = fit(pixels, spec).astype(int)
        monkeypatch.setattr(preprocess, "_MAX_CANVAS_PIXELS", 1)
        near = fit(pixels, spec)
        assert np.abs(near - exact).mean() < 2.0


class TestCrop:
    @pytest.mark.parametrize(
        ("height", "width", "share", "resized", "corner"),
        [
            (480, 640, 0.875, (256, 341), (16, 58)),  # round(58.5) is even
            (640, 480, 0.875, (341, 256), (58, 16)),
            (333, 500, 1.0, (224, 336), (0, 56)),
            (500, 333, 0.9, (373, 249), (74, 12)),
        ],
    )
    def test_as_torchvision(self, height, width, share, resized, corner):
        pixels = noise(height, width)
        spec = PreprocessSpec(size=(224, 224), fit="crop", crop_share=share)
        assert needed_size(spec, width, height) == resized
        whole = Image.fromarray(pixels).resize(resized[::-1], Image.Resampling.BICUBIC)
        top, left = corner
        expected = np.asarray(whole)[top : top + 224, left : left + 224]
        np.testing.assert_array_equal(fit(pixels, spec), expected)

    @pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
    def test_the_middle_alone_gives_the_same(self, name, monkeypatch):
        spec = PreprocessSpec(size=(50, 50), fit="crop", crop_share=0.8, resample=name)
        pixels = np.asarray(Image.fromarray(noise(9, 14)).resize((140, 90)))
        expected = fit(pixels, spec).astype(int)
        monkeypatch.setattr(preprocess, "_MAX_RESIZED_PIXELS", 0)
        assert np.abs(fit(pixels, spec) - expected).max() <= 1

    def test_elongated_images_take_little_memory(self):
        spec = PreprocessSpec(size=(260, 260), fit="crop")
        for shape in ((1, 200_000, 3), (200_000, 1, 3)):
            assert fit(np.full(shape, 7, np.uint8), spec).tolist() == [[[7] * 3] * 260] * 260


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    how=st.sampled_from(["squash", "pad", "crop"]),
    share=st.floats(0.3, 1.0),
    value=st.integers(0, 255),
)
def test_shape_and_flat_colour_are_kept(shape, size, how, share, value):
    spec = PreprocessSpec(size=size, fit=how, crop_share=share, pad_colour=(value,) * 3)
    found = fit(np.full((*shape, 3), value, np.uint8), spec)
    assert found.shape == (*size, 3)
    assert found.dtype == np.uint8
    assert (found == value).all()


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    full=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    how=st.sampled_from(["squash", "pad", "crop"]),
    scale=st.sampled_from([1, 2, 4, 8]),
)
def test_reduced_pictures_have_the_same_shape(full, size, how, scale):
    width, height = full
    pixels = np.full((-(-height // scale), -(-width // scale), 3), 9, np.uint8)
    spec = PreprocessSpec(size=size, fit=how, pad_colour=(9, 9, 9))
    found = fit(pixels, spec, full)
    assert found.shape == (*size, 3)
    assert (found == 9).all()


def test_a_full_size_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="cannot be a reduced decode"):
        fit(noise(10, 10), PreprocessSpec(size=(5, 5)), (31, 30))


def test_a_reduced_picture_is_padded_where_the_full_one_would_be():
    """Of 400 x 100 at 1/8, 50 x 13: the last row is half filled, and white begins within it."""
    pixels = np.zeros((13, 50, 3), np.uint8)
    spec = PreprocessSpec(size=(200, 200), fit="pad", resample="box")
    found = fit(pixels, spec, (400, 100))[:, 100, 0]
    expected = fit(np.zeros((100, 400, 3), np.uint8), spec)[:, 100, 0]
    np.testing.assert_allclose(found.astype(int).sum(), expected.astype(int).sum(), rtol=0.01)


def test_an_image_that_fits_is_not_touched():
    pixels = noise(20, 20)
    for how in ("squash", "pad", "crop"):
        assert fit(pixels, PreprocessSpec(size=(20, 20), fit=how)) is pixels


def test_the_size_needed_by_several():
    small = PreprocessSpec(size=(100, 300))
    large = PreprocessSpec(size=(200, 200), fit="pad")
    assert needed_size(large, 400, 100) == (50, 200)
    assert needed_by_all(small, large)(400, 100) == (100, 300)
    assert needed_by_all(large)(1, 100_000) == (200, 1)


class TestBatch:
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    @pytest.mark.parametrize("order", ["rgb", "bgr"])
    @pytest.mark.parametrize("dtype", ["float32", "uint8"])
    def test_against_float64(self, layout, order, dtype):
        spec = PreprocessSpec(
            size=(16, 12),
            layout=layout,
            channel_order=order,
            dtype=dtype,
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
        images = [noise(16, 12, seed) for seed in range(3)]
        expected = np.stack(images)[..., :: -1 if order == "bgr" else 1].astype(np.float64)
        if dtype == "float32":
            expected = (expected - CLIP_MEAN) / CLIP_STD
        if layout == "nchw":
            expected = expected.transpose(0, 3, 1, 2)
        found = to_batch(images, spec)
        assert found.dtype == np.dtype(dtype)
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("mean", "std"),
        [
            (CLIP_MEAN, CLIP_STD),
            ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
            ((127.5,) * 3, (127.5,) * 3),
            ((0.0,) * 3, (255.0,) * 3),
            ((0.0,) * 3, (1.0,) * 3),
        ],
        ids=["CLIP", "ImageNet", "-1..1", "0..1", "0..255"],
    )
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    def test_every_value_is_exact(self, mean, std, layout):
        spec = PreprocessSpec(size=(1, 256), mean=mean, std=std, layout=layout)
        ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        expected = ((ramp - np.array(mean)) / std)[None]
        expected = expected.transpose(0, 3, 1, 2) if layout == "nchw" else expected
        np.testing.assert_allclose(to_batch([ramp], spec), expected, rtol=0, atol=1e-6)

    def test_0_to_1_is_the_default(self):
        found = to_batch([noise(4, 4)], PreprocessSpec(size=(4, 4)))
        np.testing.assert_array_equal(found[0, 0], noise(4, 4)[:, :, 0].astype(np.float32) / 255)

    def test_no_image_is_an_empty_batch(self):
        assert to_batch([], PreprocessSpec(size=(4, 5))).shape == (0, 3, 4, 5)

    def test_pictures_that_do_not_fit_are_refused(self):
        spec = PreprocessSpec(size=(4, 4))
        with pytest.raises(ValueError, match=r"expected uint8 \[4, 4, 3\], but got uint8 \[5, 4"):
            to_batch([noise(5, 4)], spec)
        with pytest.raises(ValueError, match="got float64"):
            to_batch([noise(4, 4).astype(float)], spec)

    def test_read_only_and_flipped_pictures(self):
        pixels = noise(4, 4)
        pixels.flags.writeable = False
        spec = dataclasses.replace(PreprocessSpec(size=(4, 4)), layout="nhwc", dtype="uint8")
        np.testing.assert_array_equal(to_batch([pixels[:, ::-1]], spec)[0], pixels[:, ::-1])
