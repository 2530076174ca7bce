"""Perceptual hashes of real photos: copies that were changed a little stay near, other photos are far."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from annotary import images, preprocess
from annotary.images import DecodeOptions
from annotary.pipeline import PipelineOptions, annotate
from annotary.records import Item
from annotary.sources import Reader, SourceOptions
from annotary.tasks.perceptual_hash import (
    BITS,
    SPEC,
    PerceptualHash,
    chromas,
    distance,
    perceptual_hashes,
)

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.jpg"))


def hash_of(data: bytes) -> int | None:
    decoded = images.decode(data, at_least=preprocess.needed_by_all(SPEC))
    picture = preprocess.fit(decoded.pixels, SPEC, (decoded.width, decoded.height))
    (found,) = PerceptualHash().annotate([], preprocess.to_batch([picture], SPEC))
    value: int | None = found["phash"]
    return value


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


COPIES = {
    "png": lambda image: encoded(image, "PNG"),
    "quality 30": lambda image: encoded(image, quality=30),
    "half": lambda image: encoded(resized(image, 0.5)),
    "twice": lambda image: encoded(resized(image, 2.0)),
    "a thumbnail": lambda image: encoded(resized(image, 160 / max(image.size))),
    "grey": lambda image: encoded(image.convert("L")),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.1)),
    "darker": lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.85)),
    "more contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(1.15)),
}


@pytest.fixture(scope="module")
def hashes() -> dict[str, int]:
    found = {path.name: hash_of(path.read_bytes()) for path in EXAMPLES}
    assert None not in found.values()
    return found


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_within_a_few_bits(hashes, change):
    for path in EXAMPLES:
        with Image.open(path) as image:
            copy = hash_of(COPIES[change](image.convert("RGB")))
        assert distance(hashes[path.name], copy) <= 6, path.name


def test_other_photos_are_far(hashes):
    assert min(distance(a, b) for a, b in combinations(hashes.values(), 2)) >= 16


def test_half_of_the_bits_are_set(hashes):
    assert all(value.bit_count() == BITS // 2 for value in hashes.values())


def test_what_a_camera_turned_is_the_same_when_it_is_upright():
    with Image.open(EXAMPLES[0]) as image:
        upright = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    assert hash_of(encoded(turned, "PNG", exif=exif)) == hash_of(encoded(upright, "PNG"))
    assert distance(hash_of(encoded(turned, "PNG")), hash_of(encoded(upright, "PNG"))) > 16


def test_flat_pictures_have_no_hash():
    for colour in ("white", "black", (200, 30, 90)):
        assert hash_of(encoded(Image.new("RGB", (60, 40), colour), "PNG")) is None
    noise = np.random.default_rng(0).integers(100, 102, (64, 64, 3), np.uint8)
    assert hash_of(encoded(Image.fromarray(noise), "PNG")) is None
    pale = np.tile(np.linspace(250, 255, 64).astype(np.uint8)[:, None, None], (1, 64, 3))
    assert hash_of(encoded(Image.fromarray(pale), "PNG")) is not None


def test_the_definition_by_hand():
    """The cosines are summed as the paper has them, one coefficient at a time."""
    pictures = np.random.default_rng(7).integers(0, 256, (3, 32, 32, 3), np.uint8)
    values, is_flat = perceptual_hashes(pictures)
    assert values.dtype == np.uint64
    assert not is_flat.any()
    for picture, value in zip(pictures, values.tolist(), strict=True):
        grey = picture.astype(np.float64) @ [0.299, 0.587, 0.114]
        y, x = np.mgrid[:32, :32]
        lowest = [
            (
                grey * np.cos(np.pi * (2 * y + 1) * v / 64) * np.cos(np.pi * (2 * x + 1) * u / 64)
            ).sum()
            for v in range(1, 9)
            for u in range(1, 9)
        ]
        bits = "".join("1" if number > np.median(lowest) else "0" for number in lowest)
        assert int(bits, 2) == value


def test_no_pictures():
    values, is_flat = perceptual_hashes(np.empty((0, 32, 32, 3), np.uint8))
    assert len(values) == len(is_flat) == 0


def test_in_the_pipeline_it_stands_beside_the_record(hashes):
    with Reader(SourceOptions()) as reader:
        results = list(
            annotate(
                [Item.from_path(path) for path in EXAMPLES],
                [PerceptualHash()],
                reader,
                DecodeOptions(),
                PipelineOptions(),
                keeps_digest=True,
            )
        )
    assert [result.beside["phash"] for result in results] == list(hashes.values())
    assert all(len(result.beside["sha256"]) == 64 for result in results)
    assert all(not result.record.sources for result in results)


def test_photos_are_far_from_grey_and_their_grey_copies_are_not():
    def chroma_of(image: Image.Image, **options) -> int:
        decoded = images.decode(encoded(image, **options), at_least=preprocess.needed_by_all(SPEC))
        picture = preprocess.fit(decoded.pixels, SPEC, (decoded.width, decoded.height))
        return int(chromas(preprocess.to_batch([picture], SPEC).astype(np.uint8))[0])

    for path in EXAMPLES:
        with Image.open(path) as photo:
            assert chroma_of(photo.convert("RGB"), quality=30) > 24
            assert chroma_of(photo.convert("L").convert("RGB"), quality=30) <= 6
    assert chromas(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0,)
