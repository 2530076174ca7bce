"""Encoded bytes to upright RGB pixels, whatever the bytes are.

The bytes come from anywhere, so nothing in them is believed: the format is told from the first
bytes and must be one of `FORMATS`, the size is checked before memory is taken for it, the decoder
is shown only those parts of a file that make pixels, and whatever a damaged file provokes becomes
one `UnreadableImage` with one line.

Colours are passed through as they are stored: embedded profiles are not applied, because the
pipelines that published weights were trained with did not apply them. Pillow's global settings are
left alone, and its warnings cannot arise, so decoding in many threads needs no guard.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFile

from annotary import exif
from annotary.cards import Alpha
from annotary.errors import MissingExtra, UnreadableImage

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""uint8[H, W, 3], RGB."""

SizeRule: TypeAlias = Callable[[int, int], tuple[int, int]]
"""From the full upright width and height to the height and width that are needed."""

REDUCING_GAP = 1.4
"""How many times larger than needed a JPEG must still be when it is decoded at reduced scale.

Then the network's input differs from that of a full decode by less than 2 of 255 on average, and by at most 24 at any
value; 64 at padded edges of images whose sides do not divide by the scale. `benchmarks/reduced_decode.py` measures it
on JPEGs of 12 megapixels, with what it does to the starter's tags and what other gaps would give.
"""


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How images are decoded."""

    max_pixels: int = 178_956_970
    """Refuse images with more pixels (width times height): they could use up the memory."""
    reduce: bool = True
    """Decode JPEGs much larger than the network's input at reduced scale: faster, nearly the same input."""
    transparency: Literal["auto", "white", "drop"] = "auto"
    """What becomes of transparency: white puts the picture on white, drop shows the colours that are hidden under it,
    auto does what the model was published with."""

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels must be positive, but got {self.max_pixels}")
        if self.transparency not in ("auto", "white", "drop"):
            told = repr(self.transparency)
            raise ValueError(f"transparency must be one of auto, white, drop, but got {told}")

    def alpha_of(self, wanted: Alpha) -> Alpha:
        """What becomes of transparency for weights that want it so."""
        return wanted if self.transparency == "auto" else self.transparency


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded picture.

    Attributes:
        pixels: uint8[h, w, 3], RGB, upright. A reduced JPEG is smaller than the image, by 2, 4 or
            8 rounded up; tell `preprocess.fit` the full size then.
        width: Of the full upright image in pixels.
        height: Of the full upright image in pixels.
        is_transparent: Whether it has transparency, so that it matters what becomes of it.
    """

    pixels: Pixels
    width: int
    height: int
    is_transparent: bool = False


def decode(
    data: bytes,
    *,
    at_least: tuple[int, int] | SizeRule | None = None,
    options: DecodeOptions = DecodeOptions(),
    alpha: Alpha = "white",
) -> Decoded:
    """Decode an image of any allowed format to upright RGB.

    Of an animation the first frame is taken.

    Args:
        data: The encoded bytes.
        at_least: Height and width of the upright picture that will be needed, or the rule that
            tells them from the image's size (`preprocess.needed_by_all`). A JPEG may then be
            decoded at 1/2, 1/4 or 1/8 of its size, as long as it stays `REDUCING_GAP` times
            larger. None decodes in full.
        options: Limits and speed.
        alpha: What becomes of transparency where the options leave it open, as in `PreprocessSpec`.

    Raises:
        UnreadableImage: The bytes are no image that can be decoded; the message is one line.
    """
    name = _sniff(data)
    with _one_line(name, data):
        opened = FORMATS[name][1](data, options)
        width, height = opened.image.size
        _check_size(width, height, options)
    turned = opened.orientation in (5, 6, 7, 8)
    if turned:
        width, height = height, width
    needed = None
    if at_least is not None and options.reduce and opened.scales:
        rows, columns = at_least(width, height) if callable(at_least) else at_least
        needed = (rows, columns) if turned else (columns, rows)
    with _one_line(name, data):
        if needed:
            _reduce(opened.image, needed)
        rgb = _to_rgb(opened, name, options.alpha_of(alpha))
        if opened.orientation in _TRANSPOSE:
            rgb = rgb.transpose(_TRANSPOSE[opened.orientation])
        return Decoded(_to_array(rgb), width, height, _is_transparent(opened))


def from_pillow(image: Image.Image, alpha: Alpha = "white") -> Pixels:
    """A Pillow image of any mode as upright RGB, uint8[H, W, 3].

    Args:
        image: The image.
        alpha: What becomes of transparency.

    Raises:
        UnreadableImage: It has no pixels, or they cannot be read.
    """
    if not image.width or not image.height:
        raise UnreadableImage(f"it has {image.width} x {image.height} pixels")
    with _one_line("image", b""):
        orientation = image.getexif().get(0x0112, 1)
        rgb = _to_rgb(_Opened(image), "image", alpha)
        return _to_array(
            rgb.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else rgb
        )


class _Opened(NamedTuple):
    """A file whose header was read.

    Attributes:
        image: Not loaded yet.
        orientation: 1..8, as in EXIF.
        scales: Whether the decoder can decode at reduced scale.
        key: The value that means transparent, one number a band of `image`, or None.
    """

    image: Image.Image
    orientation: int = 1
    scales: bool = False
    key: tuple[int, ...] | None = None


class _TruncatedError(ValueError):
    """The file ends before its own structure does."""


# What Pillow and the libraries under it raise on bytes that are not what they claim to be.
_DAMAGE = (
    *(SyntaxError, OSError, EOFError, zlib.error, struct.error),  # plugins and decoders
    *(ValueError, TypeError, ArithmeticError, AssertionError),  # fields that make no sense
    *(LookupError, AttributeError),  # parts that were promised and are missing
    *(MemoryError, Image.DecompressionBombError),  # sizes that only the decoder reads
    RuntimeError,  # libheif and libjxl; NotImplementedError
)
_SHORT_READS = (EOFError, IndexError, struct.error)
_SHORT = re.compile("truncated|not enough|end of file", re.I)
_FOR_PROGRAMMERS = re.compile(r"object at|int\(\)|error -?\d|Generic|this driver|this image")


@contextlib.contextmanager
def _one_line(name: str, data: bytes) -> Iterator[None]:
    """Turn what a damaged file provokes into one line for people."""
    try:
        yield
    except _DAMAGE as error:
        raise UnreadableImage(_describe(name, data, error)) from error


def _describe(name: str, data: bytes, error: BaseException) -> str:
    text = " ".join(str(error).removesuffix(" when reading image file").split()).rstrip(".")
    if isinstance(error, _TruncatedError):
        return f"truncated {name}: {text}"
    if _SHORT.search(text) or any(isinstance(e, _SHORT_READS) for e in (error, error.__cause__)):
        return f"truncated {name}: it ends after {len(data):,} bytes"
    if isinstance(error, MemoryError):
        text = "it asks for more memory than there is"
    elif _FOR_PROGRAMMERS.search(text) or not isinstance(error, SyntaxError | OSError | ValueError):
        text = ""
    return f"damaged {name}: {text or 'it cannot be decoded'}"


def _check_size(width: int, height: int, options: DecodeOptions) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"its size is {width:,} x {height:,} pixels")
    if width * height > options.max_pixels:
        found = f"{width:,} x {height:,} are {width * height:,} pixels"
        raise UnreadableImage(f"too large: {found}, --max-pixels allows {options.max_pixels:,}")


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what makes the picture upright."""


def _reduce(image: Image.Image, needed: tuple[int, int]) -> None:
    """Have libjpeg decode at 1/8, 1/4 or 1/2, if that is large enough for (width, height)."""
    for scale in (8, 4, 2):
        size = (image.width // scale, image.height // scale)
        least = [max(1.0, REDUCING_GAP * side) for side in needed]
        if size[0] >= least[0] and size[1] >= least[1]:
            cast("ImageFile.ImageFile", image).draft(None, size)
            return


def _to_rgb(opened: _Opened, name: str, alpha: Alpha) -> Image.Image:
    """Any mode to RGB, with transparency on white or dropped."""
    image = opened.image
    image.load()
    if opened.key is not None and alpha != "drop":
        return _without_key(image, opened.key)
    mode = image.mode
    if _is_indirect(image):
        is_one_colour = isinstance(image.info.get("transparency"), int)
        if alpha == "key" and mode == "P" and is_one_colour:
            # Pillow keeps it as that colour, and transformers' image processors put it on white.
            return _opaque(image.convert("RGB").convert("RGBA"), "white")
        return _opaque(image.convert("RGBA"), alpha)
    if mode == "RGB":
        return image
    if mode in ("RGBA", "LA"):
        return _opaque(image, alpha)
    if mode in ("RGBa", "La"):  # colours are multiplied by alpha already
        if alpha != "white":
            return image.convert("RGBA" if mode == "RGBa" else "LA").convert("RGB")
        *bands, share = image.split()
        bands = [ImageChops.add(band, ImageChops.invert(share)) for band in bands]
        return Image.merge("RGB", bands * (3 // len(bands)))
    if mode[0] in "IF":
        return Image.fromarray(_to_grey(np.asarray(image), mode, name)).convert("RGB")
    return image.convert("RGB")


def _is_indirect(image: Image.Image) -> bool:
    """Whether transparency is said of a colour, or of entries of a palette."""
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    return "transparency" in image.info or image.mode == "PA" or palette == "RGBA"


def _is_transparent(opened: _Opened) -> bool:
    own = opened.image.mode in ("RGBA", "LA", "RGBa", "La")
    return own or opened.key is not None or _is_indirect(opened.image)


def _opaque(image: Image.Image, alpha: Alpha) -> Image.Image:
    """White * (1 - alpha) + colour * alpha, to the nearest, and opaque pixels keep their bits; or the colour alone."""
    if alpha != "white":
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def _without_key(image: Image.Image, key: tuple[int, ...]) -> Image.Image:
    """Pixels of exactly the colour `key` become white (PNG's tRNS)."""
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    clear = values == key[0] if values.ndim == 2 else (values == np.array(key)).all(axis=2)
    pixels = np.array(Image.fromarray(_to_grey(values, image.mode, "PNG")).convert("RGB"))
    pixels[clear] = 255
    return Image.fromarray(pixels)


def _to_grey(values: npt.NDArray[Any], mode: str, name: str) -> Pixels:
    """Numbers of more than 8 bits to 0..255, to the nearest; what is no number becomes black.

    16 bits are scaled by 255 / 65,535, in every format. Floats and the 32-bit integers of TIFF
    carry no range: they are taken to be in 0..1 (floats only), 0..255 or 0..65,535, whichever is
    the first that holds them all, and else stretched from the least to the greatest.
    """
    if values.dtype == np.uint8:
        return values
    numbers = values.astype(np.float32)
    known = np.isfinite(numbers)
    least = float(np.min(numbers, where=known, initial=np.inf)) if known.any() else 0.0
    most = float(np.max(numbers, where=known, initial=least))
    if mode != "F" and (mode != "I" or name != "TIFF"):
        least, most = 0.0, 65535.0
    elif least >= 0.0:
        ranges = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
        fitting = [(0.0, top) for top in ranges if most <= top]
        least, most = fitting[0] if fitting else (least, most)
    factor = 255.0 / max(most - least, 1e-9)
    numbers = np.where(known, numbers, least) * np.float32(factor) - np.float32(least * factor)
    return np.clip(np.rint(numbers), 0, 255).astype(np.uint8)


def _to_array(image: Image.Image) -> Pixels:
    """Strip by strip, which is five times as fast as all at once for 12 megapixels."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    step = max(1, 2**20 // width)
    for top in range(0, height, step):
        strip = image.crop((0, top, width, min(height, top + step)))
        pixels[top : top + step] = np.asarray(strip)
    return pixels


class _NoExif:
    """Keeps Pillow from reading EXIF: it warns of damage, and only the orientation is needed."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


class _PlainTiff(_NoExif):
    """Keeps Pillow from a size check of its own, and from turning the picture."""

    def load_prepare(self) -> None:
        ImageFile.ImageFile.load_prepare(cast("ImageFile.ImageFile", self))

    def load_end(self) -> None:
        pass


@functools.cache
def _plugin(name: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    """A Pillow plugin, imported when it is needed and kept from reading EXIF."""
    plugin = getattr(importlib.import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile")
    quiet = _PlainTiff if name == "Tiff" else _NoExif
    return cast("Callable[[io.BytesIO], ImageFile.ImageFile]", type(name, (quiet, plugin), {}))


def _simple(name: str) -> Callable[[bytes, DecodeOptions], _Opened]:
    """The reader of a format whose header takes no memory and that has no orientation."""
    return lambda data, _options: _Opened(_plugin(name)(io.BytesIO(data)))


def _read_jpeg(data: bytes, _options: DecodeOptions) -> _Opened:
    """Of several pictures in one file (MPO, gain maps) this is the first."""
    image = _plugin("Jpeg")(io.BytesIO(data))
    return _Opened(image, _orientation(image), scales=True)


def _orientation(image: Image.Image) -> int:
    """How the picture is turned, by the blocks of EXIF and XMP that its plugin found."""
    return exif.orientation(*(image.info.get(name) or b"" for name in ("exif", "xmp")))


def _read_png(data: bytes, options: DecodeOptions) -> _Opened:
    """Without text and profiles, which can be bombs, and without animation.

    The default image, which remains, is the first frame of an animation or stands in for it.
    """
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    _check_size(width, height, options)
    kept, exif_chunk, xmp, key = [data[:8]], b"", b"", b""
    offset, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data.ljust(offset + 8, b"\0"), offset)
        end = offset + 12 + length
        if end > len(data):
            if len(kept) > 1 and kept[-1][4:8] == b"IDAT" and kind != b"IDAT":
                break  # what is missing makes no pixels
            raise _TruncatedError(f"it ends after {len(data):,} bytes")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (kind == b"tRNS" and colour == 3):
            kept.append(data[offset:end])
        elif kind == b"tRNS":
            key = data[offset + 8 : end - 4]
        elif kind == b"eXIf":
            exif_chunk = data[offset + 8 : end - 4]
        elif kind == b"iTXt" and data.startswith(_PNG_XMP, offset + 8):
            xmp = data[offset + 8 : end - 4]
        offset = end
    image = _plugin("Png")(io.BytesIO(b"".join(kept)))
    return _Opened(image, exif.orientation(exif_chunk, xmp), key=_png_key(key, depth, colour))


_PNG_XMP = b"XML:com.adobe.xmp\0\0"  # not compressed: that could be a bomb


def _png_key(chunk: bytes, depth: int, colour: int) -> tuple[int, ...] | None:
    """The transparent colour of tRNS for grey (0) and RGB (2), as Pillow decodes that colour.

    Pillow keeps the high byte of RGB with 16 bits, so there the low byte cannot be compared.
    """
    bands = {0: 1, 2: 3}.get(colour, 0)
    if not bands or len(chunk) < 2 * bands:
        return None
    values = [value & (2**depth - 1) for value in struct.unpack_from(f">{bands}H", chunk)]
    if depth < 16:
        return tuple(value * 255 // (2**depth - 1) for value in values)
    return tuple(value >> 8 if colour == 2 else value for value in values)


def _read_gif(data: bytes, options: DecodeOptions) -> _Opened:
    """Pillow takes memory for the frame when it opens the file; so its size is checked before."""
    patched = bytearray(data)
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    offset = 13 + ((3 << ((flags & 7) + 1)) if flags & 0x80 else 0)
    while data[offset] != ord(","):
        if data[offset] == ord(";"):
            raise ValueError("it holds no picture")
        if data[offset] == ord("!"):
            if data[offset + 1] == 0xF9:
                patched[offset + 3] &= 0b11100011  # how to clear away the frame: do not
            offset += 2
            while data[offset]:
                offset += 1 + data[offset]
        offset += 1
    left, top, columns, rows = struct.unpack_from("<4H", data, offset + 1)
    width, height = max(width, left + columns), max(height, top + rows)
    _check_size(width, height, options)
    if max(width, height) > 0xFFFF:
        raise ValueError("the first frame lies outside of the picture")
    struct.pack_into("<HH", patched, 6, width, height)
    return _Opened(_plugin("Gif")(io.BytesIO(patched)))


def _read_webp(data: bytes, options: DecodeOptions) -> _Opened:
    """The decoder takes memory for the canvas when it is made; so the size is checked before."""
    (length,) = struct.unpack_from("<I", data, 4)
    if length + 8 > len(data) + 1:
        raise _TruncatedError(f"{len(data):,} of {length + 8:,} bytes")
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    _check_size(width, height, options)
    image = _plugin("WebP")(io.BytesIO(data))
    return _Opened(image, _orientation(image))


def _read_avif(data: bytes, _options: DecodeOptions) -> _Opened:
    """Only the container's rotation and mirroring count, as the standard says; EXIF is hidden.

    Pillow passes them on as the orientation of an EXIF block that it writes.
    """
    data = re.sub(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", rb"\1none", data, flags=re.S)
    image = _plugin("Avif")(io.BytesIO(data))
    return _Opened(image, exif.orientation(image.info.get("exif", b"")))


def _read_heif(data: bytes, options: DecodeOptions) -> _Opened:
    """Libheif turns the picture upright; EXIF must not do so again."""
    try:
        import pillow_heif
    except ImportError as error:
        raise UnreadableImage(str(MissingExtra("HEIC", "formats"))) from error
    file = pillow_heif.open_heif(io.BytesIO(data))
    heif = file[file.primary_index]
    _check_size(heif.size[0], heif.size[1], options)
    pixels = heif.data  # this decodes, and may correct the size
    return _Opened(Image.frombytes(heif.mode, heif.size, pixels, "raw", heif.mode, heif.stride))


def _read_jxl(data: bytes, options: DecodeOptions) -> _Opened:
    """Libjxl turns the picture upright. A JPEG that was packed without loss is a JPEG again."""
    try:
        import pillow_jxl
    except ImportError as error:
        raise UnreadableImage(str(MissingExtra("JPEG XL", "formats"))) from error
    _check_size(*_jxl_size(data), options)
    is_jpeg, info, pixels, *_ = pillow_jxl.Decoder(num_threads=1)(data)
    if is_jpeg:
        return _read_jpeg(bytes(pixels), options)
    return _Opened(Image.frombytes(info.mode, (info.width, info.height), bytes(pixels)))


def _jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height from the SizeHeader of a JPEG XL codestream (ISO/IEC 18181-1)."""
    if not data.startswith(b"\xff\x0a"):
        skip = {b"jxlc": 0, b"jxlp": 4}
        parts = ((start + skip[kind], end) for kind, start, end in _boxes(data) if kind in skip)
        data = b"".join(data[start : min(end, start + 16)] for start, end in parts)
    bits = int.from_bytes(data[2:16], "little")

    def take(count: int) -> int:
        nonlocal bits
        bits, value = bits >> count, bits & ((1 << count) - 1)
        return value

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = side()
    ratio = take(3)
    top, bottom = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return height * top // bottom if ratio else side(), height


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each outer box of an ISO base media file."""
    offset = 0
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        start = offset + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = min(len(data), offset + length) if length else len(data)
        if end < start:
            raise ValueError("its structure makes no sense")
        yield kind, start, end
        offset = end


_ONE_VALUE = {256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323, 332, 334}
_PIXEL_TAGS = _ONE_VALUE | {
    *(258, 273, 279, 292, 293, 320, 324, 325, 338, 339, 340, 341, 347, 512, 513, 514, 515),
    *(517, 518, 519, 520, 521, 529, 530, 531, 532, 34676, 50674, 0xBC01),
}
"""The tags that make pixels: Pillow sees no others, because it reads and warns about all it sees."""


def _read_tiff(data: bytes, options: DecodeOptions) -> _Opened:
    """The first picture, with the tags that make its pixels and no others."""
    directory = exif.read_directory(data)
    found = exif.first_values(data, directory, {256, 257, exif.ORIENTATION})
    _check_size(found[256], found[257], options)
    kept, outside = {}, 0
    for tag, width, values, where, entry in directory.tags:
        if tag in _PIXEL_TAGS:
            outside += width * values
            if where + width * values > len(data):
                raise _TruncatedError(f"it ends after {len(data):,} bytes")
            if outside > len(data) or (values > 1 and tag in _ONE_VALUE):
                raise ValueError(f"tag {tag} cannot have {values:,} values")
            kept[tag] = entry
    total, offset = ("Q", "Q") if directory.large else ("H", "I")
    block = struct.pack(directory.order + total, len(kept)) + b"".join(kept.values())
    block += bytes(struct.calcsize(offset))  # no second picture
    patched = bytearray(data)
    patched[directory.start : directory.start + len(block)] = block
    return _Opened(_plugin("Tiff")(io.BytesIO(patched)), found.get(exif.ORIENTATION, 1))


FORMATS: dict[str, tuple[bytes, Callable[[bytes, DecodeOptions], _Opened]]] = {
    "JPEG": (rb"\xff\xd8\xff", _read_jpeg),
    "PNG": (rb"\x89PNG\r\n\x1a\n", _read_png),
    "GIF": (rb"GIF8[79]a", _read_gif),
    "WebP": (rb"RIFF....WEBP", _read_webp),
    "AVIF": (rb"....ftyp(?:....){0,30}?avi[fs]", _read_avif),
    "HEIC": (rb"....ftyp(?:....){0,30}?(?:he[iv][cxms]|mif1|msf1)", _read_heif),
    "JPEG XL": (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", _read_jxl),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", _read_tiff),
    "JPEG 2000": (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n", _simple("Jpeg2K")),
    "PNM": (rb"P[1-6fF]\s", _simple("Ppm")),
    "BMP": (rb"BM.{4}\0\0\0\0|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", _simple("Bmp")),
}
"""What can be read: name, first bytes, reader. Drawings and external programs are left out."""

_OTHERS = (
    ("an SVG drawing", rb"\s*(<[?!][^>]*>\s*)*<svg"),
    ("a web page", rb"\s*(<!--[^>]*>\s*)*<(!doctype html|html|head|body)"),
    ("a PDF", rb"%PDF"),
    ("a video", rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI "),
    ("text", rb"[^\0-\x08\x0e-\x1f]+\Z"),
    ("nothing known", rb""),
)


def _sniff(data: bytes) -> str:
    """The format that the first bytes tell."""
    if not data:
        raise UnreadableImage("the file is empty")
    start = data[:256]
    for name, (pattern, _) in FORMATS.items():
        if re.match(pattern, start, re.S):
            return name
    like = [kind for kind, pattern in _OTHERS if re.match(pattern, start, re.S | re.I)]
    raise UnreadableImage(f"not an image that can be read: it looks like {like[0]}")
