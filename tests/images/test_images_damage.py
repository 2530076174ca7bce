"""What cannot be read is one clear line, and nothing else."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from annotary.errors import UnreadableImage
from annotary.images import DecodeOptions, decode


def message(data, **options):
    with pytest.raises(UnreadableImage) as caught:
        decode(data, **options)
    text = str(caught.value)
    assert text == " ".join(text.split())
    assert len(text) < 160
    assert not re.search(r"object at|0x|Traceback|<", text)
    return text


def test_an_empty_file():
    assert message(b"") == "the file is empty"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\n  <HTML lang='en'>", "a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "text"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "a video"),
        (b"just some words\n", "text"),
        ("Köln\n".encode(), "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "text"),
        (bytes(range(256)), "nothing known"),
        (b"BM", "text"),
        (b"\0", "nothing known"),
        (b"<!" * 200, "text"),
        (b"<!>" * 80, "text"),
    ],
)
def test_what_is_no_image(data, kind):
    assert message(data) == f"not an image that can be read: it looks like {kind}"


SAVED = {
    "JPEG": ("JPEG", {}),
    "PNG": ("PNG", {}),
    "GIF": ("GIF", {}),
    "WebP": ("WEBP", {}),
    "TIFF": ("TIFF", {}),
    "BMP": ("BMP", {}),
    "PNM": ("PPM", {}),
    "AVIF": ("AVIF", {}),
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated(name, share, picture, encode):
    form, options = SAVED[name]
    data = encode(picture, form, **options)
    assert message(data[: int(share * len(data))]).startswith(f"truncated {name}: ")


def test_truncated_says_how_much_there_is(picture, encode):
    data = encode(picture, "WEBP")
    assert message(data[:200]) == f"truncated WebP: 200 of {len(data):,} bytes"
    assert message(encode(picture, "PNG")[:100]) == "truncated PNG: it ends after 100 bytes"


def test_png_without_its_end_is_complete(picture, encode):
    data = encode(picture, "PNG")
    for missing in (1, 4, 12):
        np.testing.assert_array_equal(decode(data[:-missing]).pixels, picture)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge(form, encode):
    """A small file whose header claims 60,000 x 60,000 pixels."""
    side = 60_000
    data = bytearray(encode(Image.new("RGB", (8, 8)), form))
    if form == "JPEG":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
    elif form == "PNG":
        data[8:33] = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    elif form == "GIF":
        struct.pack_into("<HH", data, data.index(b",") + 5, side, side)
    elif form == "BMP":
        struct.pack_into("<ii", data, 18, side, side)
    elif form == "TIFF":
        for tag in (256, 257):
            at = bytes(data).index(struct.pack("<HHI", tag, 4, 1))
            struct.pack_into("<I", data, at + 8, side)
    elif form == "PPM":
        data = bytearray(b"P6 60000 60000 255\n" + bytes(99))
    elif form == "JPEG2000":
        at = bytes(data).index(b"ihdr")
        struct.pack_into(">II", data, at + 4, side, side)
    elif form == "WEBP":
        size = (side - 1).to_bytes(3, "little") * 2
        extended = b"VP8X" + struct.pack("<II", 10, 0) + size
        data = data[:12] + extended + data[12:]
        struct.pack_into("<I", data, 4, len(data) - 8)
    return bytes(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "WEBP"])
def test_bombs_are_refused_before_memory_is_taken(form, encode):
    assert message(huge(form, encode)) == (
        "too large: 60,000 x 60,000 are 3,600,000,000 pixels, --max-pixels allows 178,956,970"
    )


def test_gif_whose_frame_is_larger_than_its_screen(encode):
    data = bytearray(encode(Image.new("RGB", (8, 8)), "GIF", disposal=2))
    struct.pack_into("<HHHH", data, data.index(b",") + 1, 9_000, 9_000, 9_000, 9_000)
    assert message(bytes(data)).startswith("too large: 18,000 x 18,000")


def test_the_limit_is_the_callers(picture, encode):
    for form in ("JPEG", "PNG", "AVIF", "WEBP"):
        data = encode(picture, form)
        assert decode(data, options=DecodeOptions(max_pixels=64 * 48)).width == 64
        assert "64 x 48" in message(data, options=DecodeOptions(max_pixels=64 * 48 - 1))


def test_above_pillows_own_limit_there_is_no_warning(encode):
    """Pillow warns from 89 million pixels on; the limit here is twice that."""
    data = encode(Image.new("1", (12_000, 7_600)), "TIFF", compression="group4")
    assert decode(data).width == 12_000


def test_a_limit_must_be_positive():
    with pytest.raises(ValueError, match="max_pixels"):
        DecodeOptions(max_pixels=0)


def test_drawings_and_external_programs_are_not_tried(encode):
    image = Image.new("RGB", (8, 8))
    for form in ("EPS", "PDF", "ICO", "PCX", "TGA", "DDS"):
        assert message(encode(image, form)).startswith("not an image that can be read")


def test_an_error_of_the_size_rule_is_not_taken_for_damage(picture, encode):
    def rule(width, height):
        raise ValueError("a fault of the caller")

    with pytest.raises(ValueError, match="a fault of the caller"):
        decode(encode(picture, "JPEG"), at_least=rule)


def samples():
    """One small valid file of each format and of each way through the code."""
    y, x = np.mgrid[0:12, 0:16]
    image = Image.fromarray(np.stack([x * 16, y * 20, x + y], axis=2).astype(np.uint8))
    block = Image.Exif()
    block[0x0112] = 6
    exif = block.tobytes()
    more = {"save_all": True, "append_images": [image.rotate(90)]}
    wanted = [
        (image, "JPEG", {"exif": exif}),
        (image, "JPEG", {"progressive": True}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "PNG", {"exif": exif, "transparency": (0, 0, 0)}),
        (image.quantize(8), "PNG", {"transparency": b"\0\x80"}),
        (image.convert("1"), "PNG", {}),
        (image, "PNG", more),
        (image, "GIF", {**more, "disposal": 2, "comment": b"hi"}),
        (image, "WEBP", {"exif": exif}),
        (image.convert("RGBA"), "WEBP", {"lossless": True}),
        (image, "WEBP", more),
        (image, "AVIF", {"exif": exif}),
        (image, "TIFF", {"tiffinfo": {0x0112: 6}}),
        (image.convert("F"), "TIFF", {}),
        (image, "TIFF", {"big_tiff": True}),
        (image, "BMP", {}),
        (image, "JPEG2000", {}),
        (image, "PPM", {}),
    ]
    files = []
    for picture, form, options in wanted:
        file = io.BytesIO()
        picture.save(file, form, **options)
        files.append(file.getvalue())
    return [*files, *extra_samples(image)]


def extra_samples(image):
    """Of the formats whose packages are installed."""
    try:
        import pillow_heif
        import pillow_jxl  # noqa: F401
    except ImportError:
        return []
    heic, jxl = io.BytesIO(), io.BytesIO()
    pillow_heif.from_pillow(image).save(heic)
    image.save(jxl, "JXL")
    return [heic.getvalue(), jxl.getvalue()]


SAMPLES = samples()


@settings(
    derandomize=True,
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    sample=st.integers(0, len(SAMPLES) - 1),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    in_header=st.booleans(),
)
def test_damage_is_never_anything_else(sample, keep, flips, in_header):
    data = bytearray(SAMPLES[sample])
    del data[int(keep * len(data)) :]
    reach = min(len(data), 100) if in_header else len(data)
    for where, value in flips:
        if data:
            data[int(where * reach)] = value
    try:
        decoded = decode(bytes(data), at_least=(4, 4), options=DecodeOptions(max_pixels=1_000_000))
    except UnreadableImage as error:
        text = str(error)
        assert "\n" not in text
        assert "object at" not in text
    else:
        assert decoded.pixels.dtype == np.uint8
        assert decoded.pixels.ndim == 3
        assert decoded.pixels.shape[2] == 3
