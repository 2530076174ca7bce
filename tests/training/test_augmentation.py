"""Augmentation: operations against formulas of their own, what is drawn and how often, the same picture anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from annotary import preprocess
from annotary.cards import PreprocessSpec
from annotary.models.joytag import preprocess_of
from annotary.training._operations import BINS, OPERATIONS, rand_space, trivial_space
from annotary.training.augmentation import (
    CUTOUT_COLOUR,
    AugmentationOptions,
    Chance,
    apply,
    augment,
    draw_rand,
    draw_trivial,
    fit_augmented,
    flipped,
    mix_up,
)
from tests.conftest import child_environment

LEVEL_1 = (
    *("Identity", "ShearX", "ShearY", "Rotate", "Brightness", "Sharpness", "TranslateX"),
    "TranslateY",
)
LEVEL_2 = (*LEVEL_1, "Color", "Contrast", "Posterize", "Solarize", "AutoContrast", "Equalize")

Numbers = npt.NDArray[np.float64]

pictures = nps.arrays(
    np.uint8, st.tuples(st.integers(3, 12), st.integers(3, 12), st.just(3)), elements=st.integers(0, 255)
)  # fmt: skip


def noise(height: int = 24, width: int = 32, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sampled(pixels: npt.NDArray[np.uint8], matrix: tuple[float, ...]) -> Numbers:
    """Bilinear, white outside: what is at (x, y) comes from (a x + b y + c, d x + e y + f), of middles of pixels."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[0:height, 0:width] + 0.5
    a, b, c, d, e, f = matrix
    across, down = a * x + b * y + c, d * x + e * y + f
    is_inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    left, top = np.floor(across - 0.5).astype(int), np.floor(down - 0.5).astype(int)
    right_share, low_share = across - 0.5 - left, down - 0.5 - top

    def at(rows: npt.NDArray[np.int_], columns: npt.NDArray[np.int_]) -> Numbers:
        return pixels[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)].astype(float)

    upper = at(top, left) + (at(top, left + 1) - at(top, left)) * right_share[..., None]
    lower = at(top + 1, left) + (at(top + 1, left + 1) - at(top + 1, left)) * right_share[..., None]
    return np.where(is_inside[..., None], upper + (lower - upper) * low_share[..., None], 255.0)


def assert_near(found: npt.NDArray[np.uint8], expected: Numbers, tolerance: float = 1.0) -> None:
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= tolerance


@given(pictures, st.floats(-0.99, 0.99))
def test_shears_move_rows_and_columns_about_the_upper_left_corner(pixels, magnitude):
    across = apply(pixels, "ShearX", magnitude)
    # What lies on the very edge may be taken for inside or outside, by the last bit.
    expected = sampled(pixels, (1, magnitude, 0, 0, 1, 0))
    assert_mostly_near(across, expected)
    assert_mostly_near(
        apply(pixels, "ShearY", magnitude), sampled(pixels, (1, 0, 0, magnitude, 1, 0))
    )


def assert_mostly_near(found: npt.NDArray[np.uint8], expected: Numbers) -> None:
    """Near, but for the pixels whose place lies on the border of the picture."""
    assert found.shape == expected.shape
    differs = (np.abs(found - expected) > 1.5).any(axis=2)
    rows, columns = found.shape[:2]
    assert differs.sum() <= max(rows, columns)
    assert (found[differs] == 255).all() or (expected[differs] == 255).all()


@given(pictures, st.floats(-32, 32))
def test_translations_are_of_whole_pixels_and_leave_white(pixels, magnitude):
    height, width = pixels.shape[:2]
    by = int(magnitude)  # towards 0
    moved = np.full_like(pixels, 255)
    for column in range(width):
        if 0 <= column - by < width:
            moved[:, column] = pixels[:, column - by]
    np.testing.assert_array_equal(apply(pixels, "TranslateX", magnitude), moved)
    moved = np.full_like(pixels, 255)
    for row in range(height):
        if 0 <= row - by < height:
            moved[row] = pixels[row - by]
    np.testing.assert_array_equal(apply(pixels, "TranslateY", magnitude), moved)


@given(pictures, st.floats(-135, 135))
def test_rotation_is_counter_clockwise_about_the_middle(pixels, angle):
    height, width = pixels.shape[:2]
    c, s = cos(radians(angle)), sin(radians(angle))
    x, y = width / 2, height / 2
    expected = sampled(pixels, (c, -s, x - c * x + s * y, s, c, y - s * x - c * y))
    assert_mostly_near(apply(pixels, "Rotate", angle), expected)


def test_rotation_by_a_right_angle_moves_whole_pixels():
    square = noise(16, 16)
    np.testing.assert_array_equal(apply(square, "Rotate", 90.0), np.rot90(square))


def luma(pixels: npt.NDArray[np.uint8]) -> Numbers:
    """Of ITU-R BT.601, in 8 bits."""
    return np.floor(pixels @ np.array([0.299, 0.587, 0.114]) + 0.5)


def blended(plain: Numbers, pixels: npt.NDArray[np.uint8], magnitude: float) -> Numbers:
    return np.clip(plain + (pixels - plain) * (1 + magnitude), 0, 255)


@given(pictures, st.floats(-0.99, 0.99))
def test_colour_operations_go_from_a_plain_picture_beyond_the_own(pixels, magnitude):
    black = np.zeros(pixels.shape)
    assert_near(apply(pixels, "Brightness", magnitude), blended(black, pixels, magnitude))
    grey = np.repeat(luma(pixels)[..., None], 3, axis=2)
    # The grey of 8 bits may be one off, and is taken away at most twice.
    assert_near(apply(pixels, "Color", magnitude), blended(grey, pixels, magnitude), 2.0)
    mean = np.full(pixels.shape, np.floor(luma(pixels).mean() + 0.5))
    assert_near(apply(pixels, "Contrast", magnitude), blended(mean, pixels, magnitude), 2.0)


@given(pictures, st.floats(-0.99, 0.99))
def test_sharpness_goes_from_a_smoothed_picture_beyond_the_own(pixels, magnitude):
    smooth = pixels.astype(float)
    around = sum(
        pixels[1 + i : pixels.shape[0] - 1 + i, 1 + j : pixels.shape[1] - 1 + j].astype(float)
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    )
    smooth[1:-1, 1:-1] = np.floor((around + 4.0 * pixels[1:-1, 1:-1]) / 13 + 0.5)
    assert_near(apply(pixels, "Sharpness", magnitude), blended(smooth, pixels, magnitude), 2.0)


@given(pictures, st.integers(2, 8), st.floats(0, 255))
def test_posterize_keeps_upper_bits_and_solarize_turns_what_is_bright(pixels, bits, threshold):
    kept = (pixels.astype(int) >> (8 - bits)) << (8 - bits)
    np.testing.assert_array_equal(apply(pixels, "Posterize", float(bits)), kept)
    turned = np.where(pixels < threshold, pixels, 255 - pixels)
    np.testing.assert_array_equal(apply(pixels, "Solarize", threshold), turned)


@given(pictures)
def test_auto_contrast_stretches_each_colour(pixels):
    low, high = pixels.min((0, 1)).astype(float), pixels.max((0, 1)).astype(float)
    stretched = (pixels - low) * 255 / np.maximum(high - low, 1)
    expected = np.where(high > low, stretched, pixels)
    assert_near(apply(pixels, "AutoContrast", 0.0), expected)


@given(pictures)
def test_equalize_spreads_the_values_of_each_colour(pixels):
    expected = pixels.copy()
    for channel in range(3):
        counts = np.bincount(pixels[:, :, channel].ravel(), minlength=256)
        present = counts[counts > 0]
        step = (present.sum() - present[-1]) // 255
        if len(present) > 1 and step:
            before = np.concatenate([[0], np.cumsum(counts)[:-1]])
            table = np.minimum((step // 2 + before) // step, 255)
            expected[:, :, channel] = table[pixels[:, :, channel]]
    np.testing.assert_array_equal(apply(pixels, "Equalize", 0.0), expected)


def test_equalize_of_many_pixels():
    dark = noise(64, 64) // 3
    found = apply(dark, "Equalize", 0.0)
    assert found.max() == 255
    assert abs(float(found.mean()) - 127.5) < 6


@pytest.mark.parametrize("name", LEVEL_2)
def test_the_first_bin_changes_nothing(name):
    # Solarize turns full white even at its weakest, as in torchvision; the two without strength always act.
    pixels = np.minimum(noise(), 254)
    strengths = trivial_space(2)[name]
    found = apply(pixels, name, strengths.magnitudes[0])
    if name not in ("AutoContrast", "Equalize"):
        np.testing.assert_array_equal(found, pixels)
    white = np.full((4, 4, 3), 255, np.uint8)
    turned = apply(white, name, strengths.magnitudes[0])
    assert (turned == (0 if name == "Solarize" else 255)).all()


@pytest.mark.parametrize("name", [*LEVEL_1, "Posterize"])
def test_what_comes_from_outside_is_white(name):
    black = np.zeros((64, 64, 3), np.uint8)
    found = apply(black, name, trivial_space(2)[name].magnitudes[-1])
    has_corner = {"ShearX": (-1, -1), "ShearY": (-1, -1), "Rotate": (0, 0)}
    has_corner |= {"TranslateX": (0, 0), "TranslateY": (0, 0)}
    if name in has_corner:
        assert (found[has_corner[name]] == 255).all()
        assert (found == 0).any()
    else:
        assert (found == 0).all()


def test_the_spaces_are_those_of_the_specification():
    assert tuple(trivial_space(1)) == LEVEL_1
    space = trivial_space(2)
    assert tuple(space) == LEVEL_2
    assert set(rand_space(224, 224)) == set(LEVEL_2) == set(OPERATIONS)
    greatest = {"ShearX": 0.99, "ShearY": 0.99, "Rotate": 135, "TranslateX": 32, "TranslateY": 32}
    greatest |= {"Brightness": 0.99, "Sharpness": 0.99, "Color": 0.99, "Contrast": 0.99}
    for name, most in greatest.items():
        magnitudes, is_signed = space[name]
        assert is_signed
        assert len(magnitudes) == BINS == 31
        np.testing.assert_allclose(magnitudes, [most * i / 30 for i in range(31)], rtol=1e-6)
    # What float32 makes of the middle bin, 16 pixels, is a little less, and is cut.
    cut = [int(magnitude) for magnitude in space["TranslateX"].magnitudes]
    assert cut == [int(32 * i / 30) - (i == 15) for i in range(31)]
    bits = space["Posterize"].magnitudes
    assert Counter(bits) == {8: 3, 7: 5, 6: 5, 5: 5, 4: 5, 3: 5, 2: 3}
    assert list(bits) == sorted(bits, reverse=True)
    assert space["Solarize"].magnitudes == tuple(255 - 8.5 * i for i in range(31))
    assert not space["Posterize"].is_signed
    assert not space["Solarize"].is_signed
    assert space["Equalize"].magnitudes == space["AutoContrast"].magnitudes == (0.0,)


def test_bins_agree_with_torch():
    torch = pytest.importorskip("torch")
    for name, most in (("ShearX", 0.99), ("Rotate", 135.0), ("TranslateX", 32.0)):
        expected = torch.linspace(0.0, most, 31)
        found = torch.tensor(trivial_space(1)[name].magnitudes)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    bits = 8 - (torch.arange(31) / (30 / 6)).round().int()
    assert [int(one) for one in trivial_space(2)["Posterize"].magnitudes] == bits.tolist()
    bits = 8 - (torch.arange(31) / (30 / 4)).round().int()
    assert [int(one) for one in rand_space(9, 9)["Posterize"].magnitudes] == bits.tolist()


@pytest.mark.parametrize("level", [1, 2])
def test_operations_bins_and_signs_are_equally_probable(level):
    drawn = [draw_trivial(Chance(7, 0, f"image {i}"), level) for i in range(30_000)]
    names = Counter(name for name, _ in drawn)
    count = len(trivial_space(level))
    assert len(names) == count
    # Five standard deviations.
    spread = 5 * (30_000 / count * (1 - 1 / count)) ** 0.5
    assert all(abs(one - 30_000 / count) < spread for one in names.values())
    turns = [magnitude for name, magnitude in drawn if name == "Rotate"]
    bins = Counter(round(abs(turn) / 4.5) for turn in turns)
    assert sorted(bins) == list(range(31))
    spread = 5 * (len(turns) / 31) ** 0.5
    assert all(abs(one - len(turns) / 31) < spread for one in bins.values())
    positive = sum(turn > 0 for turn in turns) / sum(turn != 0 for turn in turns)
    assert abs(positive - 0.5) < 5 * 0.5 / len(turns) ** 0.5
    unsigned = [magnitude for name, magnitude in drawn if name in ("Posterize", "Solarize")]
    assert all(magnitude >= 0 for magnitude in unsigned)


def test_rand_augment_draws_operations_of_one_strength():
    options = AugmentationOptions(kind="rand", operations=3, magnitude=15)
    drawn = [one for i in range(4000) for one in draw_rand(Chance(1, 2, str(i)), options, 100, 331)]
    assert len(drawn) == 12_000
    assert set(Counter(name for name, _ in drawn)) == set(LEVEL_2)
    shifts = {abs(magnitude) for name, magnitude in drawn if name == "TranslateX"}
    assert len(shifts) == 1
    assert shifts.pop() == pytest.approx(75.0, abs=1e-4)
    shifts = {round(abs(magnitude), 3) for name, magnitude in drawn if name == "TranslateY"}
    assert shifts == {22.659}
    assert {magnitude for name, magnitude in drawn if name == "Posterize"} == {6.0}


def test_chance_is_the_same_everywhere_and_another_for_each_image_epoch_and_seed():
    # Written down once: it may not change with a version of anything, or training does not go on where it was.
    chance = Chance(42, 3, "posts/1.webp")
    found = [chance.share() for _ in range(10)]
    assert found[0] == FIRST
    assert found[9] == TENTH
    others = [Chance(42, 3, "posts/2.webp"), Chance(42, 4, "posts/1.webp"), Chance(41, 3, "posts/1.webp")]  # fmt: skip
    assert len({found[0], *(other.share() for other in others)}) == 4
    assert Chance(1, 1, "a\udcffb").share() < 1.0  # a name that is not UTF-8


FIRST, TENTH = 0.5748187365060102, 0.02342881674598185


def test_shares_are_spread_evenly():
    chance = Chance(0, 0, "x")
    shares = np.array([chance.share() for _ in range(20_000)])
    assert 0 <= shares.min() <= shares.max() < 1
    counts = np.histogram(shares, 20, (0, 1))[0]
    assert np.abs(counts - 1000).max() < 5 * 1000**0.5
    whole = Counter(chance.below(7) for _ in range(7000))
    assert sorted(whole) == list(range(7))
    assert sum(chance.happens(0.25) for _ in range(4000)) == pytest.approx(1000, abs=140)


WAYS = [
    AugmentationOptions("none"),
    AugmentationOptions("trivial"),
    AugmentationOptions("trivial2", flip=0.5, cutout=0.3),
    AugmentationOptions("rand", operations=3, magnitude=20),
    AugmentationOptions("sw", cutout=0.2),
]

SPEC = replace(preprocess_of(20), resample="bilinear")


@pytest.mark.parametrize("options", WAYS, ids=lambda one: one.kind)
def test_an_image_is_changed_alike_every_time_and_otherwise_in_other_epochs(options):
    pixels = noise(30, 17)
    before = pixels.copy()

    def changed(epoch: int) -> bytes:
        found = fit_augmented(pixels, SPEC, options, Chance(5, epoch, "an image"))
        assert found.shape == (20, 20, 3)
        assert found.dtype == np.uint8
        return found.tobytes()

    first = [changed(epoch) for epoch in range(12)]
    assert first == [changed(epoch) for epoch in range(12)]
    assert (pixels == before).all()
    distinct = len(set(first))
    assert distinct == 1 if options.kind == "none" else distinct > 6


def test_without_augmentation_it_is_the_fitted_picture():
    pixels = noise(30, 17)
    fitted = preprocess.fit(pixels, SPEC)
    found = fit_augmented(pixels, SPEC, AugmentationOptions("none"), Chance(0, 0, ""))
    np.testing.assert_array_equal(found, fitted)


def test_another_process_draws_the_same():
    code = (
        "import json\nfrom annotary.training.augmentation import Chance, draw_trivial\n"
        "print(json.dumps([draw_trivial(Chance(3, 1, str(i)), 2) for i in range(40)]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**child_environment(), "PYTHONHASHSEED": "77"},
    ).stdout
    here = [list(draw_trivial(Chance(3, 1, str(i)), 2)) for i in range(40)]
    assert json.loads(told) == here


def test_flips_exchange_left_and_right():
    pixels = noise()
    found = flipped(pixels)
    np.testing.assert_array_equal(found[:, 0], pixels[:, -1])
    np.testing.assert_array_equal(flipped(found), pixels)
    options = AugmentationOptions("none", flip=0.5)
    kept = sum(
        (augment(pixels, options, Chance(0, 0, str(i))) == pixels).all() for i in range(1000)
    )
    assert abs(kept - 500) < 80
    always = augment(pixels, AugmentationOptions("none", flip=1.0), Chance(0, 0, "a"))
    np.testing.assert_array_equal(always, found)


def test_cutout_covers_a_square_around_any_pixel():
    white = np.full((20, 30, 3), 255, np.uint8)
    options = AugmentationOptions("none", cutout=0.5)
    touched = np.zeros((20, 30), bool)
    most = 0
    for i in range(400):
        is_covered = (augment(white, options, Chance(0, 0, str(i))) == CUTOUT_COLOUR).all(axis=2)
        rows, columns = is_covered.any(1).nonzero()[0], is_covered.any(0).nonzero()[0]
        assert is_covered.sum() == len(rows) * len(columns)
        assert 5 <= len(rows) <= 10
        assert 5 <= len(columns) <= 10
        assert (np.diff(rows) == 1).all()
        most = max(most, int(is_covered.sum()))
        touched |= is_covered
    assert most == 100
    assert touched.all()


def test_sw_keeps_nearly_all_of_the_padded_picture_and_turns_it():
    # A black picture, wider than high: white lies above and below it, and in the corners that turning brings.
    black = np.zeros((60, 120, 3), np.uint8)
    spec = replace(SPEC, size=(64, 64))
    shares = [
        float((fit_augmented(black, spec, AugmentationOptions("sw"), Chance(0, 0, str(i))) < 128).mean())
        for i in range(200)
    ]  # fmt: skip
    assert min(shares) > 0.4
    assert max(shares) < 0.66
    plain = np.zeros((64, 64, 3), np.uint8)
    corners = [
        int(fit_augmented(plain, spec, AugmentationOptions("sw"), Chance(0, 1, str(i)))[0, 0, 0])
        for i in range(50)
    ]
    assert np.mean(np.array(corners) > 200) > 0.8  # all that are turned by more than a little


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_sw_takes_pictures_of_any_shape(height, width, seed):
    found = fit_augmented(
        np.zeros((height, width, 3), np.uint8), SPEC, AugmentationOptions("sw"), Chance(seed, 0, "")
    )
    assert found.shape == (20, 20, 3)


def test_sw_mirrors_half_of_the_pictures():
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[24:40, 4:20] = 0  # in the middle of the left side
    spec = PreprocessSpec(size=(64, 64), fit="pad")
    places = []
    for i in range(300):
        found = fit_augmented(pixels, spec, AugmentationOptions("sw"), Chance(9, 0, str(i)))
        columns = (found[:, :, 0] < 128).any(axis=0).nonzero()[0]
        places.append(columns.mean() < 32)
    assert abs(sum(places) - 150) < 45


def test_augment_refuses_a_way_that_begins_with_the_whole_picture():
    with pytest.raises(ValueError, match="fit_augmented"):
        augment(noise(), AugmentationOptions("sw"), Chance(0, 0, ""))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "flip"}, "kind must be one of none, trivial, trivial2, rand, sw"),
        ({"magnitude": 31}, "magnitude must be in 0..30"),
        ({"operations": -1}, "operations must not be negative"),
        ({"flip": 1.5}, "flip must be in 0..1"),
        ({"cutout": float("nan")}, "cutout must be in 0..1"),
    ],
)
def test_options_are_checked(values, told):
    with pytest.raises(ValueError, match=told):
        AugmentationOptions(**values)


def test_mix_up_mixes_from_both_ends_alike():
    images = (
        noise(4, 4).reshape(1, 4, 4, 3) // 2 + np.arange(5, dtype=np.uint8)[:, None, None, None]
    )
    targets = np.eye(5, dtype=np.uint8)
    mixed, mixed_targets = mix_up(images, targets, 0.8, 1, 2, 3)
    assert mixed.dtype == mixed_targets.dtype == np.float32
    own = np.diagonal(mixed_targets).copy()
    other = mixed_targets[np.arange(5), np.arange(5)[::-1]]
    own[2] = 1.0  # the one in the middle meets itself
    np.testing.assert_allclose(own + other * (np.arange(5) != 2), 1.0, rtol=1e-6)
    np.testing.assert_allclose(mixed_targets.sum(1), 1.0, rtol=1e-6)
    for i in range(5):
        expected = images[i] * own[i] + images[4 - i] * (1 - own[i])
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-5)
    again = mix_up(images, targets, 0.8, 1, 2, 3)
    assert (again[0] == mixed).all()
    assert (mix_up(images, targets, 0.8, 1, 2, 4)[0] != mixed).any()
    assert images.dtype == np.uint8


def test_mix_up_shares_are_of_the_beta_distribution():
    images = np.zeros((4000, 1), np.float32)
    targets = np.concatenate([np.ones((2000, 1)), np.zeros((2000, 1))]).astype(np.float32)
    _, mixed = mix_up(images, targets, 0.4, 0, 0, 0)
    shares = mixed[:2000, 0]
    assert abs(float(shares.mean()) - 0.5) < 0.04
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)


def test_mix_up_is_the_same_for_torch_and_leaves_out_what_is_no_picture():
    torch = pytest.importorskip("torch")
    images, targets = noise(6, 8).reshape(6, -1), np.eye(6, dtype=np.uint8)
    weights = np.array([1, 1, 0, 1, 1, 1], np.float32)
    plain = mix_up(images, targets, 0.8, 5, 0, 64, weights)
    there = mix_up(
        torch.from_numpy(images), torch.from_numpy(targets), 0.8, 5, 0, 64, torch.from_numpy(weights)
    )  # fmt: skip
    for here, tensor in zip(plain, there, strict=True):
        assert tensor.dtype == torch.float32
        np.testing.assert_allclose(here, tensor.numpy(), rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(plain[0][3], images[3])
    np.testing.assert_array_equal(plain[1][3], targets[3])
    assert plain[1][0, 5] > 0
    halves = mix_up(torch.ones(2, 3, dtype=torch.float16), torch.ones(2, 1), 0.5, 0, 0, 0)
    assert halves[0].dtype == torch.float16


def test_mix_up_of_strength_zero_changes_nothing():
    images, targets = noise(2, 2).reshape(2, -1), np.eye(2, dtype=np.uint8)
    mixed, mixed_targets = mix_up(images, targets, 0.0, 0, 0, 0)
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(mixed_targets, targets)
    with pytest.raises(ValueError, match="alpha"):
        mix_up(images, targets, -1.0, 0, 0, 0)
