"""What can be read is read right: formats, modes, transparency, orientation."""

import io
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from annotary.errors import UnreadableImage
from annotary.images import DecodeOptions, decode


def png(width, height, depth, colour, rows, *chunks):
    """A PNG by hand, for what Pillow cannot write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(chunk(kind, data) for kind, data in chunks)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + pixels + chunk(b"IEND", b"")


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_lossless_formats_keep_every_bit(form, picture, encode):
    decoded = decode(encode(picture, form))
    np.testing.assert_array_equal(decoded.pixels, picture)
    assert (decoded.width, decoded.height) == (64, 48)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.flags.writeable


def test_webp_without_loss_keeps_every_bit(picture, encode):
    np.testing.assert_array_equal(decode(encode(picture, "WEBP", lossless=True)).pixels, picture)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_are_close(form, picture, encode):
    found = decode(encode(picture, form, quality=95)).pixels
    assert np.abs(found.astype(int) - picture).mean() < 2.0


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_a_colour_profile_changes_nothing(form, picture, encode):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    data = encode(picture, form, icc_profile=profile)
    np.testing.assert_array_equal(decode(data).pixels, decode(encode(picture, form)).pixels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("large", [False, True], ids=["TIFF", "BigTIFF"])
def test_tiff_compressions(compression, large, picture, encode):
    data = encode(picture, "TIFF", compression=compression, big_tiff=large)
    np.testing.assert_array_equal(decode(data).pixels, picture)


def test_tiff_of_many_pages_is_its_first(picture, encode):
    other = Image.fromarray(picture[::-1])
    data = encode(picture, "TIFF", save_all=True, append_images=[other])
    np.testing.assert_array_equal(decode(data).pixels, picture)


def test_grey_is_repeated(picture, encode):
    grey = picture[:, :, 0]
    found = decode(encode(grey, "PNG")).pixels
    np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, axis=2))


def test_one_bit(encode):
    bits = np.arange(64 * 48).reshape(48, 64) % 3 == 0
    found = decode(encode(bits, "PNG")).pixels
    np.testing.assert_array_equal(found[:, :, 0], bits * 255)
    np.testing.assert_array_equal(decode(encode(bits, "TIFF", compression="group4")).pixels, found)


def test_palette(picture, encode):
    image = Image.fromarray(picture).quantize(64)
    found = decode(encode(image, "PNG")).pixels
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


class TestMoreThanEightBits:
    def test_16_bit_grey_png_is_rounded(self, encode):
        values = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
        found = decode(encode(values, "PNG")).pixels
        np.testing.assert_array_equal(found[:, :, 1], np.rint(values / 257))

    def test_16_bit_rgb_png_keeps_the_high_byte(self, picture):
        values = (picture.astype(np.uint16) * 256 + 99).astype(">u2")
        found = decode(png(64, 48, 16, 2, [row.tobytes() for row in values])).pixels
        np.testing.assert_array_equal(found, picture)

    def test_16_bit_grey_tiff(self, encode):
        values = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
        np.testing.assert_array_equal(
            decode(encode(values, "TIFF")).pixels[:, :, 2], np.rint(values / 257)
        )

    @pytest.mark.parametrize(
        ("top", "expected"), [(1.0, 255.0), (200.0, 200.0), (65535.0, 255.0), (5e6, 255.0)]
    )
    def test_float_tiff_is_taken_by_its_range(self, top, expected, encode):
        values = np.linspace(0, top, 64 * 48, dtype=np.float32).reshape(48, 64)
        found = decode(encode(values, "TIFF")).pixels[:, :, 0]
        np.testing.assert_allclose(found, values / top * expected, atol=0.51)

    def test_negative_floats_are_stretched(self, encode):
        values = np.linspace(-3, 5, 64 * 48, dtype=np.float32).reshape(48, 64)
        found = decode(encode(values, "TIFF")).pixels[:, :, 0]
        np.testing.assert_allclose(found, (values + 3) / 8 * 255, atol=0.51)

    def test_what_is_no_number_is_black(self, encode):
        values = np.full((4, 4), 0.5, np.float32)
        values[0] = [np.nan, np.inf, -np.inf, 1.0]
        found = decode(encode(values, "TIFF")).pixels[:, :, 0]
        np.testing.assert_array_equal(found[0], [0, 0, 0, 255])
        assert (found[1:] == 128).all()

    @pytest.mark.parametrize(("top", "scale"), [(255, 1), (65535, 257)])
    def test_32_bit_integers_are_taken_by_their_range(self, top, scale, encode):
        values = np.linspace(0, top, 64 * 48).astype(np.int32).reshape(48, 64)
        found = decode(encode(values, "TIFF")).pixels[:, :, 0]
        np.testing.assert_array_equal(found, np.rint(values / scale))

    def test_16_bit_pnm(self):
        data = b"P5 3 1 65535\n" + np.array([0, 257 * 7, 65535], ">u2").tobytes()
        np.testing.assert_array_equal(decode(data).pixels[0, :, 0], [0, 7, 255])


class TestOtherColours:
    @pytest.mark.parametrize("form", ["JPEG", "TIFF"])
    def test_cmyk(self, form, picture, encode):
        options = {"quality": 95} if form == "JPEG" else {}
        data = encode(Image.fromarray(picture).convert("CMYK"), form, **options)
        assert np.abs(decode(data).pixels.astype(int) - picture).mean() < 2.0

    def test_cmyk_is_inverted_with_and_without_the_mark_of_adobe(self, picture, encode):
        """Adobe's applications store CMYK JPEGs inverted, and all others followed."""
        data = encode(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95)
        at = data.index(b"\xff\xee\0\x0e")
        unmarked = data[:at] + data[at + 16 :]
        np.testing.assert_array_equal(decode(unmarked).pixels, decode(data).pixels)

    def test_ycck(self, encode):
        """The same bytes called YCCK: luminance is kept, and chroma is undone by libjpeg."""
        flat = np.full((16, 16, 4), [40, 128, 128, 0], np.uint8)
        data = bytearray(
            encode(Image.frombytes("CMYK", (16, 16), flat.tobytes()), "JPEG", quality=100)
        )
        data[data.index(b"Adobe") + 11] = 2
        found = decode(bytes(data)).pixels.reshape(-1, 3).mean(axis=0)
        assert np.ptp(found) < 6.0  # neutral chroma is grey

    def test_lab(self, picture, encode):
        data = encode(Image.fromarray(picture).convert("LAB"), "TIFF")
        assert np.abs(decode(data).pixels.astype(int) - picture).mean() < 2.0


class TestTransparency:
    COLOUR = np.array([200, 100, 0])

    @pytest.mark.parametrize("alpha", [0, 1, 64, 128, 254, 255])
    @pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
    def test_rgba_is_put_on_white(self, form, alpha, encode):
        pixels = np.empty((8, 8, 4), np.uint8)
        pixels[...] = (*self.COLOUR, alpha)
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        found = decode(encode(pixels, form, **options)).pixels
        expected = np.rint((255 * (255 - alpha) + self.COLOUR * alpha) / 255)
        assert (found == expected).all()

    def test_grey_with_alpha(self, encode):
        pixels = np.array([[[10, 0], [10, 128], [10, 255]]], np.uint8)
        image = Image.merge("LA", [Image.fromarray(pixels[:, :, i]) for i in (0, 1)])
        np.testing.assert_array_equal(decode(encode(image, "PNG")).pixels[0, :, 0], [255, 132, 10])

    @pytest.mark.parametrize("bands", [3, 1], ids=["RGBa", "La"])
    def test_premultiplied(self, bands, encode, monkeypatch):
        """No file of a test can hold it, so Pillow is made to open one that does."""
        alpha = Image.new("L", (2, 2), 128)
        colour = [Image.new("L", (2, 2), value) for value in (100, 50, 0)[:bands]]
        opened = Image.merge("RGBA" if bands == 3 else "LA", [*colour, alpha])
        opened = Image.frombytes("RGBa" if bands == 3 else "La", (2, 2), opened.tobytes())
        monkeypatch.setattr("annotary.images._plugin", lambda name: lambda file: opened)
        found = decode(encode(Image.new("RGB", (2, 2)), "BMP")).pixels[0, 0]
        np.testing.assert_array_equal(found, [227, 177, 127] if bands == 3 else [227] * 3)

    @pytest.mark.parametrize("value", [3, bytes([255, 0, 128])], ids=["one colour", "a table"])
    def test_palette(self, value, encode):
        image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
        found = decode(encode(image, "PNG", transparency=value)).pixels[0].tolist()
        white = [255, 255, 255]
        if isinstance(value, int):
            assert found == [[10, 20, 30], [40, 50, 60], [70, 80, 90], white]
        else:
            assert found == [[10, 20, 30], white, [162, 167, 172], [100, 110, 120]]

    def test_gif(self, encode):
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        found = decode(encode(image, "GIF", transparency=1)).pixels[0].tolist()
        assert found == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]

    def test_key_colour_of_rgb(self, encode):
        pixels = np.array([[[1, 2, 3], [1, 2, 4], [9, 9, 9]]], np.uint8)
        found = decode(encode(pixels, "PNG", transparency=(1, 2, 3))).pixels[0].tolist()
        assert found == [[255, 255, 255], [1, 2, 4], [9, 9, 9]]

    @pytest.mark.parametrize(
        ("depth", "row", "key", "expected"),
        [
            (1, bytes([0b01000000]), 0, [255, 255, 255]),
            (1, bytes([0b01000000]), 1, [0, 255, 0]),
            (2, bytes([0b00011011]), 2, [0, 85, 255]),
            (4, bytes([0x05, 0xF0]), 5, [0, 255, 255]),
            (8, bytes([0, 7, 200]), 7, [0, 255, 200]),
            (16, bytes([0, 0, 1, 1, 200, 200]), 257, [0, 255, 200]),
        ],
    )
    def test_key_of_grey(self, depth, row, key, expected):
        data = png(3, 1, depth, 0, [row], (b"tRNS", struct.pack(">H", key)))
        assert decode(data).pixels[0, :, 0].tolist() == expected

    def test_key_of_rgb_with_16_bits(self):
        row = struct.pack(">6H", 0x0102, 0x0304, 0x0506, 0x2000, 0x3000, 0x4000)
        key = (b"tRNS", struct.pack(">3H", 0x0102, 0x0304, 0x0506))
        found = decode(png(2, 1, 16, 2, [row], key)).pixels[0].tolist()
        assert found == [[255, 255, 255], [0x20, 0x30, 0x40]]


class TestOrientation:
    UPRIGHT: ClassVar = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: np.rot90(p, 1),
    }

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "TIFF"])
    def test_exif(self, form, orientation, picture, encode):
        options = {"lossless": True} if form == "WEBP" else {}
        stored = decode(encode(picture, form, **options)).pixels
        if form == "TIFF":
            data = encode(picture, form, tiffinfo={0x0112: orientation})
        else:
            data = encode(picture, form, exif=exif(orientation), **options)
        decoded = decode(data)
        np.testing.assert_array_equal(decoded.pixels, self.UPRIGHT[orientation](stored))
        assert (decoded.height, decoded.width) == decoded.pixels.shape[:2]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_avif_turns_by_its_container(self, orientation, picture, encode):
        stored = decode(encode(picture, "AVIF")).pixels
        decoded = decode(encode(picture, "AVIF", exif=exif(orientation)))
        np.testing.assert_array_equal(decoded.pixels, self.UPRIGHT[orientation](stored))

    @pytest.mark.parametrize(
        "block",
        [
            b"",
            b"Exif\0\0",
            b"Exif\0\0II*\0",
            b"Exif\0\0" + b"\xff" * 40,
            b"Exif\0\0II*\0\xff\xff\xff\x7f",
            exif(6)[:-8],
            exif(9),
            exif(0),
        ],
    )
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
    def test_broken_exif_is_ignored(self, form, block, picture, encode):
        expected = decode(encode(picture, form)).pixels
        np.testing.assert_array_equal(decode(encode(picture, form, exif=block)).pixels, expected)

    def test_broken_exif_without_resolution_does_not_warn(self, picture, encode):
        data = encode(picture, "JPEG", exif=exif(6)[:-8])
        assert data[2:4] == b"\xff\xe0"
        without_jfif = data[:2] + data[20:]
        assert decode(without_jfif).width == 64


class TestFirstFrame:
    @pytest.mark.parametrize("disposal", [0, 2, 3])
    def test_gif(self, disposal, encode):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
        data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=disposal)
        assert (decode(data).pixels == [255, 0, 0]).all()

    @pytest.mark.parametrize("form", ["WEBP", "PNG", "AVIF"])
    def test_others(self, form, encode):
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
        data = encode(frames[0], form, save_all=True, append_images=frames[1:])
        assert np.abs(decode(data).pixels.astype(int) - [255, 0, 0]).max() < 10

    def test_mpo(self, picture, encode):
        other = Image.fromarray(picture[::-1].copy())
        data = encode(picture, "MPO", save_all=True, append_images=[other])
        np.testing.assert_array_equal(decode(data).pixels, decode(encode(picture, "JPEG")).pixels)

    def test_a_broken_animation_is_its_picture(self, picture, encode):
        data = encode(picture, "PNG", save_all=True, append_images=[Image.fromarray(picture[::-1])])
        at = data.index(b"acTL")
        body = b"acTL" + bytes(8)  # no frames
        data = data[:at] + body + struct.pack(">I", zlib.crc32(body)) + data[at + 16 :]
        np.testing.assert_array_equal(decode(data).pixels, picture)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (1, 2)])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_extreme_shapes(size, form, encode):
    decoded = decode(encode(Image.new("RGB", size, (10, 200, 30)), form), at_least=(260, 260))
    assert (decoded.width, decoded.height) == size
    assert decoded.pixels.shape == (size[1], size[0], 3)
    assert np.abs(decoded.pixels.astype(int) - [10, 200, 30]).max() < 5


def test_text_and_profiles_cannot_be_bombs(picture, encode):
    from PIL import PngImagePlugin

    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * 100_000_000, zip=True)
    data = encode(picture, "PNG", pnginfo=notes, icc_profile=bytes(5_000_000))
    assert len(data) < 200_000
    np.testing.assert_array_equal(decode(data).pixels, picture)


class TestFormatsExtra:
    @pytest.fixture
    def heif(self):
        return pytest.importorskip("pillow_heif", reason="needs annotary[formats]")

    @pytest.fixture
    def jxl(self):
        return pytest.importorskip("pillow_jxl", reason="needs annotary[formats]")

    def heic(self, heif, image, **options):
        file = io.BytesIO()
        heif.from_pillow(image).save(file, **options)
        return file.getvalue()

    def test_heic(self, heif, picture):
        found = decode(self.heic(heif, Image.fromarray(picture), quality=95)).pixels
        assert np.abs(found.astype(int) - picture).mean() < 2.0

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_heic_is_turned_once(self, orientation, heif, picture):
        image = Image.fromarray(picture)
        stored = decode(self.heic(heif, image, quality=90)).pixels.astype(int)
        decoded = decode(self.heic(heif, image, quality=90, exif=exif(orientation)))
        upright = TestOrientation.UPRIGHT[orientation](stored)
        assert decoded.pixels.shape == upright.shape
        assert (decoded.height, decoded.width) == upright.shape[:2]
        assert np.abs(decoded.pixels - upright).mean() < 4.0

    def test_heic_with_alpha(self, heif):
        image = Image.new("RGBA", (64, 64), (200, 100, 0, 128))
        found = decode(self.heic(heif, image, quality=100)).pixels
        assert np.abs(found.astype(int) - [227, 177, 127]).max() < 4

    def test_heic_of_unusual_size_is_not_registered_with_pillow(self, heif, picture):
        before = set(Image.OPEN)
        decode(self.heic(heif, Image.fromarray(picture[:13, :27]), quality=90))
        assert set(Image.OPEN) - before <= {"AVIF"}

    @pytest.mark.parametrize("container", [False, True])
    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
    def test_jxl(self, mode, container, jxl, picture, encode):
        image = Image.fromarray(picture).convert(mode)
        found = decode(encode(image, "JXL", lossless=True, use_container=container)).pixels
        np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))

    @pytest.mark.parametrize(
        "size",
        [(1, 2), (8, 8), (256, 256), (257, 100), (64, 48), (1280, 720), (9000, 2), (16, 3000)],
    )
    def test_jxl_size_is_read_before_decoding(self, size, jxl, encode):
        data = encode(Image.new("RGB", size), "JXL")
        width, height = size
        with pytest.raises(UnreadableImage, match=f"{width:,} x {height:,} are"):
            decode(data, options=DecodeOptions(max_pixels=width * height - 1))

    def test_jxl_made_of_a_jpeg(self, jxl, picture, encode, tmp_path):
        path = tmp_path / "a.jpg"
        path.write_bytes(encode(picture, "JPEG", exif=exif(6)))
        with Image.open(path) as image:
            data = encode(image, "JXL", lossless_jpeg=True)
        np.testing.assert_array_equal(decode(data).pixels, decode(path.read_bytes()).pixels)

    @pytest.mark.parametrize(
        ("module", "name", "data"),
        [
            ("pillow_heif", "HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
            ("pillow_jxl", "JPEG XL", b"\xff\x0a\xfa\x1f"),
        ],
    )
    def test_a_missing_extra_is_one_sentence(self, module, name, data, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UnreadableImage) as caught:
            decode(data)
        expected = f"{name} needs an optional part: pip install 'annotary[formats]'"
        assert str(caught.value) == expected


def test_many_threads_decode_alike(picture, encode):
    files = [
        encode(picture, "JPEG", exif=exif(6)),
        encode(picture, "PNG"),
        encode(picture, "GIF"),
        encode(picture, "WEBP"),
        encode(picture, "AVIF"),
        encode(picture, "TIFF", compression="tiff_lzw"),
        encode(Image.fromarray(picture).convert("CMYK"), "JPEG"),
        encode(Image.fromarray(picture).convert("LAB"), "TIFF"),
    ]
    expected = [decode(data).pixels for data in files]
    barrier = threading.Barrier(16)

    def work(first):
        barrier.wait()
        order = [(first + step) % len(files) for step in range(5 * len(files))]
        return all((decode(files[i]).pixels == expected[i]).all() for i in order)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def test_nothing_of_pillow_is_changed(picture, encode):
    for form in ("JPEG", "PNG", "GIF", "WEBP", "TIFF"):
        decode(encode(picture, form))
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>'
)


class TestOrientationInXmp:
    """Where EXIF does not say it, XMP counts, as in Pillow's `exif_transpose`."""

    def turned(self, data):
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))

    @pytest.mark.parametrize("turn", range(1, 9))
    @pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
    def test_it_is_read(self, form, turn, picture, encode):
        text = XMP.format(turn)
        if form == "PNG":
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", text)
            data = encode(picture, form, pnginfo=info)
        else:
            more = {"lossless": True} if form == "WEBP" else {"quality": 95}
            data = encode(picture, form, xmp=text.encode(), **more)
        np.testing.assert_array_equal(decode(data).pixels, self.turned(data))
        assert (decode(data).width < decode(data).height) == (turn > 4)

    def test_exif_goes_before_it(self, picture, encode):
        data = encode(picture, "JPEG", xmp=XMP.format(6).encode(), exif=exif(3))
        np.testing.assert_array_equal(decode(data).pixels, self.turned(data))
        data = encode(picture, "JPEG", xmp=XMP.format(6).encode(), exif=exif(1))
        np.testing.assert_array_equal(decode(data).pixels, self.turned(data))

    @pytest.mark.parametrize("text", ["tiff:Orientation=", 'tiff:Orientation="9"', "", "\0" * 9])
    def test_what_makes_no_sense_turns_nothing(self, text, picture, encode):
        data = encode(picture, "JPEG", xmp=text.encode() or b" ")
        assert decode(data).pixels.shape == picture.shape
