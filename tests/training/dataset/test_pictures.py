"""What can be trained on, the journal, and the cache of reduced pictures."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotary.errors import OutputError
from annotary.images import DecodeOptions
from annotary.sources import Reader, SourceOptions
from annotary.training.dataset.image_cache import CacheOptions, ImageCache, quality_of
from annotary.training.dataset.pictures import (
    Measuring,
    Picture,
    PictureBook,
    has_clear_pixels,
    in_order,
    is_animated,
)
from tests.training.dataset.making import encoded

RNG = np.random.default_rng(3)
NOISE = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def animation(form: str, frames: int) -> bytes:
    file = io.BytesIO()
    pictures = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(frames)]
    pictures[0].save(file, form, save_all=True, append_images=pictures[1:], duration=50)
    return file.getvalue()


def with_alpha(form: str, alpha: int) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(NOISE).convert("RGBA")
    picture.putpixel((3, 3), (1, 2, 3, alpha))
    picture.save(file, form, lossless=True)
    return file.getvalue()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
def test_animations_are_told_from_still_pictures(form):
    if form == "AVIF" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow writes no AVIF")
    assert is_animated(animation(form, 3))
    assert not is_animated(animation(form, 1))


def test_damage_is_no_animation():
    data = animation("GIF", 2)
    for end in range(60):
        is_animated(data[:end])
    assert not is_animated(data[:20])


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_only_pixels_that_can_be_seen_through_make_a_picture_transparent(form):
    assert has_clear_pixels(with_alpha(form, 254), DecodeOptions())
    assert not has_clear_pixels(with_alpha(form, 255), DecodeOptions())


def measuring(cache: ImageCache | None = None, **settings: bool) -> Measuring:
    keeps = settings.get("keeps_transparent", False)
    return Measuring(
        Reader(SourceOptions()), cache, keeps_transparent=keeps, decode=DecodeOptions()
    )


def test_why_a_picture_cannot_be_trained_on():
    told = {
        name: measuring().measure_data(data)
        for name, data in {
            "fine": encoded(NOISE, "JPEG"),
            "animated": animation("GIF", 2),
            "transparent": with_alpha("PNG", 0),
            "unreadable": encoded(NOISE, "PNG")[:300],
        }.items()
    }
    assert {name: one.why for name, one in told.items()} == {
        "fine": "", "animated": "animated", "transparent": "transparent", "unreadable": "unreadable",
    }  # fmt: skip
    assert told["unreadable"].told.startswith("truncated PNG")
    assert told["fine"].phash is not None
    assert told["fine"].sha256 == hashlib.sha256(encoded(NOISE, "JPEG")).digest()
    assert measuring(keeps_transparent=True).measure_data(with_alpha("PNG", 0)).why == ""
    flat = measuring().measure_data(encoded(np.full((9, 9, 3), 7, np.uint8), "PNG"))
    assert (flat.phash, flat.why) == (None, "")


def test_the_journal_goes_on_behind_a_cut_tail(tmp_path):
    path = tmp_path / "state" / "pictures.jsonl"
    pictures = [
        Picture(bytes(range(32)), 2**64 - 1, 7),
        Picture(b"\1" * 32, None, 0),
        Picture(b"\2" * 32, None, 0, "unreadable", "zürich \udcff"),
    ]
    book = PictureBook(path)
    assert [book.add(name, one) for name, one in zip("abc", pictures, strict=True)] == [0, 1, 2]
    assert book.add("gone", Picture(why="unreadable", told="not there")) == 3
    book.close()
    whole = path.read_bytes()
    for cut in range(len(whole) - 40, len(whole) + 1):
        path.write_bytes(whole[:cut])
        book = PictureBook(path)
        assert [book.picture(book.find(name)) for name in "ab"] == pictures[:2]
        assert book.find("gone") is None
        if book.find("c") is None:
            book.add("c", pictures[2])
        book.close()
        assert path.read_bytes() == whole
    path.write_text("something else\n")
    with pytest.raises(OutputError, match="holds something else"):
        PictureBook(path)


def test_things_come_in_their_order():
    assert list(in_order(range(40), lambda one: one * one, 3)) == [(n, n * n) for n in range(40)]
    with pytest.raises(ZeroDivisionError):
        list(in_order([1, 0, 1], lambda one: 1 // one, 2))


@given(st.binary(min_size=32, max_size=32))
def test_the_quality_follows_from_the_digest(digest):
    qualities = CacheOptions().qualities
    place = int.from_bytes(digest[-8:], "big") / 2**64
    wanted = 90 if place < 0.45 else 100 if place < 0.9 else None
    if min(abs(place - 0.45), abs(place - 0.9)) > 1e-9:
        assert quality_of(digest, qualities) == wanted


def test_qualities_have_about_their_shares():
    found = [quality_of(hashlib.sha256(bytes([n % 256, n // 256])).digest(), CacheOptions().qualities)
             for n in range(4000)]  # fmt: skip
    shares = [found.count(quality) / 4000 for quality in (90, 100, None)]
    assert np.allclose(shares, [0.45, 0.45, 0.10], atol=0.03)


@pytest.mark.parametrize("told", ["0:1", "90:0", "x:1", "101:1", "90:nan"])
def test_qualities_that_make_no_sense_are_refused(told):
    with pytest.raises(ValueError, match="cache_quality must be QUALITY:SHARE"):
        CacheOptions(cache_quality=(told,))
    with pytest.raises(ValueError, match="cache_quality"):
        CacheOptions(cache="jpeg", cache_quality=("lossless:1",))


def test_pictures_are_reduced_once_and_pruned(tmp_path: Path):
    cache = ImageCache(tmp_path, CacheOptions(cache_size=30, cache_quality=("lossless:1",)))
    data = encoded(NOISE, "PNG")
    picture = measuring(cache).measure_data(data)
    with Image.open(cache.path(picture.sha256)) as file:
        assert file.format == "WEBP"
        reduced = file.convert("RGB")
    assert reduced.size == (30, 20)
    wanted = Image.fromarray(NOISE).resize((30, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(reduced), np.asarray(wanted))
    before = cache.path(picture.sha256).stat().st_mtime_ns
    measuring(cache).measure_data(data)
    assert cache.path(picture.sha256).stat().st_mtime_ns == before
    other = measuring(cache).measure_data(encoded(NOISE[::-1], "PNG"))
    assert cache.prune({other.sha256}) == 1
    assert cache.has(other.sha256)
    assert not cache.has(picture.sha256)
    small = measuring(cache).measure_data(encoded(NOISE[:10, :12], "PNG"))
    with Image.open(cache.path(small.sha256)) as file:
        assert file.size == (12, 10)
