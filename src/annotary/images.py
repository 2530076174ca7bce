"""Encoded bytes to upright RGB pixels, whatever the bytes are.

The bytes come from anywhere, so nothing in them is believed: the format is told from the first bytes and must be one
of `FORMATS`, the size is read and checked before memory is taken for it, only those parts of a file that make pixels
are shown to the decoder, and whatever a damaged file provokes becomes one `UnreadableImage` with one line.

Colour is passed through as it is stored: embedded profiles are not applied, as no published training pipeline
applied them. Pillow's global settings are neither read nor changed, and its warnings cannot arise.
"""

from __future__ import annotations

import functools
import importlib
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFile

from annotary.errors import MissingExtra, UnreadableImage

SizeRule: TypeAlias = Callable[[int, int], tuple[int, int]]
"""From the full upright width and height to the height and width that are needed."""

REDUCING_GAP = 2.0
"""How many times larger than needed a JPEG decoded at reduced scale still is."""


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How images are decoded.

    Attributes:
        max_pixels: Images with more pixels (width times height) are refused, as they could exhaust the memory.
        reduce: Decode JPEGs much larger than the network's input at reduced scale: several times faster, and almost
            the same input.
    """

    max_pixels: int = 178_956_970
    reduce: bool = True

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels must be positive, but got {self.max_pixels}")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded picture.

    Attributes:
        pixels: uint8[h, w, 3], RGB, upright, perhaps read-only. Smaller than the image when it was reduced.
        width: Of the full upright image in pixels.
        height: Of the full upright image in pixels.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


class _Opened(NamedTuple):
    """A file whose header was read.

    Attributes:
        image: Not loaded yet.
        orientation: 1..8, as in EXIF.
        key: The value that means transparent, one number a band of `image`, or None.
    """

    image: Image.Image
    orientation: int = 1
    key: tuple[int, ...] | None = None


# What Pillow and the libraries under it raise on bytes that are not what they claim to be.
_DAMAGE = (
    SyntaxError,  # a plugin refuses the header
    OSError,  # truncated data, decoder errors
    EOFError,  # no frame
    ValueError,  # fields out of range; text that is no text
    TypeError,  # fields of the wrong kind
    LookupError,  # indices and unknown keys
    ArithmeticError,  # division by zero, overflow
    AttributeError,  # parts that the header promised and that are missing
    AssertionError,  # plugins state their expectations so
    RuntimeError,  # libheif and libjxl; NotImplementedError
    MemoryError,  # a size that only the decoder knows
    struct.error,  # short reads
    zlib.error,  # PNG, TIFF
    Image.DecompressionBombError,  # limits of Pillow's own
)


def decode(
    data: bytes,
    *,
    at_least: tuple[int, int] | SizeRule | None = None,
    options: DecodeOptions = DecodeOptions(),
) -> Decoded:
    """Decode an image of any allowed format to upright RGB.

    Transparent parts become white. Of animations the first frame is taken.

    Args:
        data: The encoded bytes.
        at_least: Height and width of the upright picture that will be needed, or the rule that tells them (see
            `preprocess.needed_by_all`). A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size, as long as it
            stays `REDUCING_GAP` times larger than that. None decodes in full.
        options: Limits and speed.

    Raises:
        UnreadableImage: The bytes are no image that can be decoded; the message is one line.
    """
    name = _sniff(data)
    try:
        opened = FORMATS[name](data, options)
        image = opened.image
        _check_size(*image.size, options)
        turned = opened.orientation >= 5
        width, height = image.size[::-1] if turned else image.size
        if at_least is not None and options.reduce and name == "JPEG":
            rows, columns = at_least(width, height) if callable(at_least) else at_least
            _reduce(image, (rows, columns) if turned else (columns, rows))
        rgb = _to_rgb(opened, name)
        if opened.orientation != 1:
            rgb = rgb.transpose(_TRANSPOSE[opened.orientation])
        return Decoded(np.asarray(rgb), width, height)
    except _DAMAGE as error:
        raise UnreadableImage(_describe(name, data, error)) from error
    except MissingExtra as error:
        raise UnreadableImage(str(error)) from error


# --- what went wrong ---


def _describe(name: str, data: bytes, error: BaseException) -> str:
    """One line for an error of a decoder."""
    text = " ".join(re.sub(r"<_io\.\w+[^>]*>", "", str(error)).split())
    if isinstance(error, _TruncatedError):
        return f"truncated {name}: {text}"
    if isinstance(error, EOFError) or re.search("truncated|not enough|end of file", text, re.I):
        return f"truncated {name}: it ends after {len(data):,} bytes"
    return f"damaged {name}: {text or 'it cannot be decoded'}"


class _TruncatedError(ValueError):
    """The file ends before its own structure does."""


def _check_size(width: int, height: int, options: DecodeOptions) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"its size is {width:,} x {height:,} pixels")
    if width * height > options.max_pixels:
        raise UnreadableImage(
            f"too large: {width:,} x {height:,} pixels are more than {options.max_pixels:,}; "
            "raise the limit with --max-pixels"
        )


# --- pixels ---

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _reduce(image: Image.Image, needed: tuple[int, int]) -> None:
    """Let libjpeg decode at 1/8, 1/4 or 1/2, if the (width, height) that is left is large enough."""
    width, height = image.size
    for scale in (8, 4, 2):
        size = (width // scale, height // scale)
        if size[0] >= REDUCING_GAP * needed[0] and size[1] >= REDUCING_GAP * needed[1]:
            cast(ImageFile.ImageFile, image).draft(None, size)
            return


def _to_rgb(opened: _Opened, name: str) -> Image.Image:
    """Any mode to RGB on white."""
    image = opened.image
    image.load()
    if opened.key is not None:
        return _without_key(image, opened.key)
    mode = image.mode
    if "transparency" in image.info or (image.palette and image.palette.mode == "RGBA"):
        return _on_white(image.convert("RGBA"))
    if mode == "RGB":
        return image
    if mode in ("RGBA", "LA", "PA"):
        return _on_white(image)
    if mode in ("RGBa", "La"):
        *bands, alpha = image.split()
        white = ImageChops.invert(alpha)
        bands = [ImageChops.add(band, white) for band in bands]
        return Image.merge("RGB", bands * (3 // len(bands)))
    if mode[0] in "IF":
        return Image.fromarray(_to_grey(np.asarray(image), mode, name)).convert("RGB")
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """White * (1 - alpha) + colour * alpha, rounded to the nearest; opaque pixels keep their bits."""
    if image.mode == "PA":
        image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def _without_key(image: Image.Image, key: tuple[int, ...]) -> Image.Image:
    """Pixels that have exactly the colour `key` become white (PNG's tRNS)."""
    values = np.asarray(image)
    if values.ndim == 2:
        clear = values == key[0]
        grey = _to_grey(values, image.mode, "PNG") if values.dtype != bool else values * 255
        pixels = np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    else:
        clear = (values == np.array(key)).all(axis=2)
        pixels = values.copy()
    pixels[clear] = 255
    return Image.fromarray(pixels)


def _to_grey(values: npt.NDArray[Any], mode: str, name: str) -> npt.NDArray[np.uint8]:
    """Numbers of more than 8 bits to 0..255.

    16 bits (of any format) are scaled by 255 / 65,535. 32-bit integers and floats, which only TIFF has, carry no range:
    numbers within 0..1 (floats), 0..255 or 0..65,535 are taken to have that range; any other range is stretched from
    its least to its greatest finite number. What is not a number becomes black.
    """
    if values.dtype == np.uint8:
        return cast("npt.NDArray[np.uint8]", values)
    numbers = np.nan_to_num(
        values.astype(np.float32), copy=False, nan=np.nan, posinf=np.nan, neginf=np.nan
    )
    known = np.isfinite(numbers)
    least = float(np.min(numbers, where=known, initial=0.0))
    most = float(np.max(numbers, where=known, initial=0.0))
    if mode.startswith("I;16") or name != "TIFF":
        least, most = 0.0, 65535.0
    elif least >= 0.0:
        ranges = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
        most = next((top for top in ranges if most <= top), most)
    scaled = (numbers - least) * (255.0 / max(most - least, 1e-30))
    return np.where(known, np.clip(np.rint(scaled), 0, 255), 0).astype(np.uint8)


# --- formats ---


class _NoExif:
    """Keeps Pillow from reading EXIF by itself: it warns about damaged EXIF, and we need the orientation only."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


class _PlainTiff(_NoExif):
    """Keeps Pillow from checking limits of its own, and from turning the picture."""

    def load_prepare(self) -> None:
        ImageFile.ImageFile.load_prepare(cast(ImageFile.ImageFile, self))

    def load_end(self) -> None:
        pass


@functools.cache
def _file_class(module: str, name: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    """A Pillow plugin's class, imported when needed and kept from reading EXIF."""
    plugin = getattr(importlib.import_module(f"PIL.{module}"), name)
    extra = _PlainTiff if name == "TiffImageFile" else _NoExif
    return cast("Callable[[io.BytesIO], ImageFile.ImageFile]", type(name, (extra, plugin), {}))


def _simple(module: str, name: str) -> Callable[[bytes, DecodeOptions], _Opened]:
    """The reader of a format whose header tells the size and nothing dangerous."""

    def read(data: bytes, options: DecodeOptions) -> _Opened:  # noqa: ARG001
        return _Opened(_file_class(module, name)(io.BytesIO(data)))

    return read


def _read_jpeg(data: bytes, options: DecodeOptions) -> _Opened:  # noqa: ARG001
    image = _file_class("JpegImagePlugin", "JpegImageFile")(io.BytesIO(data))
    return _Opened(image, _exif_orientation(image.info.get("exif", b"")))


def _read_png(data: bytes, options: DecodeOptions) -> _Opened:
    """Show Pillow only the chunks that make the default image: no text or profile bombs, no broken animation."""
    kept, exif, key = [data[:8]], b"", b""
    offset, kind = 8, b""
    while kind != b"IEND":
        if offset + 8 > len(data):
            raise _TruncatedError(f"it ends after {len(data):,} bytes")
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if end > len(data):
            raise _TruncatedError(f"it ends after {len(data):,} bytes")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(data[offset:end])
        elif kind == b"eXIf":
            exif = data[offset + 8 : end - 4]
        elif kind == b"tRNS":
            key = data[offset + 8 : end - 4]
            kept += [data[offset:end]] if data[25] == 3 else []
        offset = end
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    _check_size(width, height, options)
    image = _file_class("PngImagePlugin", "PngImageFile")(io.BytesIO(b"".join(kept)))
    return _Opened(image, _exif_orientation(exif), _png_key(key, depth, colour))


def _png_key(chunk: bytes, depth: int, colour: int) -> tuple[int, ...] | None:
    """The transparent colour of tRNS for grey (0) and RGB (2), on the scale that Pillow decodes to."""
    bands = {0: 1, 2: 3}.get(colour, 0)
    if not bands or len(chunk) < 2 * bands:
        return None
    values = [value & (2**depth - 1) for value in struct.unpack_from(f">{bands}H", chunk)]
    if depth == 16:
        return tuple(value >> 8 for value in values) if colour == 2 else tuple(values)
    return tuple(value if depth == 1 else value * 255 // (2**depth - 1) for value in values)


def _read_gif(data: bytes, options: DecodeOptions) -> _Opened:
    """Check the first frame before Pillow takes memory for it, and let it forget what happens afterwards."""
    patched = bytearray(data)
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    offset = 13 + ((3 << ((flags & 7) + 1)) if flags & 128 else 0)
    while data[offset] != 0x2C:
        if data[offset] == 0x3B:
            raise EOFError
        if data[offset] == 0x21:
            if data[offset + 1] == 0xF9:
                patched[offset + 3] &= 0b11100011  # how to dispose of the frame
            offset += 2
            while data[offset]:
                offset += 1 + data[offset]
        offset += 1
    left, top, columns, rows = struct.unpack_from("<4H", data, offset + 1)
    width, height = max(width, left + columns), max(height, top + rows)
    _check_size(width, height, options)
    struct.pack_into("<HH", patched, 6, min(width, 65535), min(height, 65535))
    return _Opened(_file_class("GifImagePlugin", "GifImageFile")(io.BytesIO(patched)))


def _read_webp(data: bytes, options: DecodeOptions) -> _Opened:
    (length,) = struct.unpack_from("<I", data, 4)
    if length + 8 > len(data):
        raise _TruncatedError(f"{len(data):,} of {length + 8:,} bytes")
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    _check_size(width, height, options)
    image = _file_class("WebPImagePlugin", "WebPImageFile")(io.BytesIO(data))
    return _Opened(image, _exif_orientation(image.info.get("exif", b"")))


def _read_avif(data: bytes, options: DecodeOptions) -> _Opened:  # noqa: ARG001
    """The container's own rotation and mirroring count; EXIF is hidden, as the standard says to ignore it."""
    for kind, start, end in _boxes(data):
        if kind == b"meta":
            data = data[:start] + data[start:end].replace(b"Exif", b"exi ") + data[end:]
            break
    image = _file_class("AvifImagePlugin", "AvifImageFile")(io.BytesIO(data))
    return _Opened(image, _exif_orientation(image.info.get("exif", b"")))


def _read_heif(data: bytes, options: DecodeOptions) -> _Opened:
    """Libheif applies rotation and mirroring; EXIF must not do so again."""
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingExtra("HEIC", "formats") from error
    file = pillow_heif.open_heif(io.BytesIO(data))
    heif = file[file.primary_index]
    _check_size(heif.size[0], heif.size[1], options)
    pixels = heif.data  # this decodes, and may correct the size
    mode = heif.mode
    return _Opened(Image.frombytes(mode, heif.size, pixels, "raw", mode, heif.stride))


def _read_jxl(data: bytes, options: DecodeOptions) -> _Opened:
    """Libjxl turns the picture upright. A JPEG that was packed without loss comes back as a JPEG."""
    try:
        import pillow_jxl
    except ImportError as error:
        raise MissingExtra("JPEG XL", "formats") from error
    _check_size(*_jxl_size(data), options)
    is_jpeg, info, pixels, *_ = pillow_jxl.Decoder(num_threads=1)(data)
    if is_jpeg:
        return _read_jpeg(bytes(pixels), options)
    return _Opened(Image.frombytes(info.mode, (info.width, info.height), bytes(pixels)))


_TIFF_TAGS = {
    *(
        256,
        257,
        258,
        259,
        262,
        266,
        273,
        277,
        278,
        279,
        284,
        292,
        293,
        317,
        320,
        322,
        323,
        324,
        325,
    ),
    *(
        332,
        334,
        338,
        339,
        340,
        341,
        347,
        512,
        513,
        514,
        515,
        517,
        518,
        519,
        520,
        521,
        529,
        530,
        531,
    ),
    *(532, 34676, 50674, 0xBC01),
}
"""The tags that make pixels. Pillow sees no others: it warns about damaged ones, and reads all of them."""


def _read_tiff(data: bytes, options: DecodeOptions) -> _Opened:
    """Show Pillow only the first picture and the tags that make its pixels."""
    entries, first, layout = _read_tags(data)
    kept, orientation, size = [], 1, {256: 0, 257: 0}
    for tag, start, width, count, value_at in entries:
        if tag == 274:
            orientation = _first_value(data, layout, width, value_at)
        if tag in size:
            size[tag] = _first_value(data, layout, width, value_at)
        if tag in _TIFF_TAGS:
            if value_at + width * count > len(data):
                raise _TruncatedError(f"it ends after {len(data):,} bytes")
            kept.append(data[start : start + layout.entry])
    _check_size(size[256], size[257], options)
    patched = bytearray(data)
    count_size = struct.calcsize(layout.order + layout.total)
    struct.pack_into(layout.order + layout.total, patched, first, len(kept))
    block = b"".join(kept) + bytes(struct.calcsize(layout.order + layout.offset))
    patched[first + count_size : first + count_size + len(block)] = block
    image = _file_class("TiffImagePlugin", "TiffImageFile")(io.BytesIO(patched))
    return _Opened(image, orientation if orientation in _TRANSPOSE else 1)


class _TiffLayout(NamedTuple):
    """How numbers are written in a TIFF: byte order, and `struct` letters of a directory's count and of offsets."""

    order: str
    total: str
    offset: str
    entry: int


_TIFF_WIDTHS = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}


def _read_tags(data: bytes) -> tuple[list[tuple[int, int, int, int, int]], int, _TiffLayout]:
    """The first directory of a TIFF or of EXIF: (tag, where its entry is, bytes a value, values, where they are)."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    (magic,) = struct.unpack_from(order + "H", data, 2)
    layout = _TiffLayout(order, "Q", "Q", 20) if magic == 43 else _TiffLayout(order, "H", "I", 12)
    (first,) = struct.unpack_from(order + layout.offset, data, 8 if magic == 43 else 4)
    (total,) = struct.unpack_from(order + layout.total, data, first)
    inline = 8 if magic == 43 else 4
    entries = []
    start = first + struct.calcsize(order + layout.total)
    for _ in range(min(total, 4096)):
        if start + layout.entry > len(data):
            raise _TruncatedError(f"it ends after {len(data):,} bytes")
        tag, kind, count = struct.unpack_from(f"{order}HH{layout.offset}", data, start)
        width = _TIFF_WIDTHS.get(kind, 0)
        value_at = start + layout.entry - inline
        if width * count > inline:
            (value_at,) = struct.unpack_from(order + layout.offset, data, value_at)
        if width and count:
            entries.append((tag, start, width, count, value_at))
        start += layout.entry
    return entries, first, layout


def _first_value(data: bytes, layout: _TiffLayout, width: int, offset: int) -> int:
    letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
    return int(struct.unpack_from(layout.order + letter, data, offset)[0])


def _exif_orientation(exif: bytes) -> int:
    """1..8; damaged EXIF says 1."""
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        entries, _, layout = _read_tags(exif)
        found = [
            _first_value(exif, layout, entry[2], entry[4]) for entry in entries if entry[0] == 274
        ]
    except (KeyError, ValueError, struct.error):
        return 1
    return found[0] if found and found[0] in _TRANSPOSE else 1


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each top-level box of an ISO base media file."""
    offset = 0
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        start = offset + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = offset + length if length else len(data)
        if end <= offset:
            raise ValueError("a box has no length")
        yield kind, start, min(end, len(data))
        offset = end


def _jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height from the SizeHeader of a JPEG XL codestream (ISO/IEC 18181-1, D.2)."""
    if not data.startswith(b"\xff\x0a"):
        skip = {b"jxlc": 0, b"jxlp": 4}
        starts = (start + skip[kind] for kind, start, _ in _boxes(data) if kind in skip)
        data = data[next(starts, len(data)) :][:16]
    if len(data) < 16:
        data += bytes(16)
    bits = int.from_bytes(data[2:16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    if ratio == 0:
        return side(), height
    top, bottom = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * top // bottom, height


FORMATS: dict[str, Callable[[bytes, DecodeOptions], _Opened]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "GIF": _read_gif,
    "WebP": _read_webp,
    "AVIF": _read_avif,
    "HEIC": _read_heif,
    "JPEG XL": _read_jxl,
    "TIFF": _read_tiff,
    "BMP": _simple("BmpImagePlugin", "BmpImageFile"),
    "JPEG 2000": _simple("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "PNM": _simple("PpmImagePlugin", "PpmImageFile"),
    "QOI": _simple("QoiImagePlugin", "QoiImageFile"),
}
"""What can be read. Vector formats, and those that need an external program, are left out on purpose."""

_SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("WebP", re.compile(rb"RIFF....WEBP", re.S)),
    ("AVIF", re.compile(rb"....ftyp(?:....)*?avi[fs]", re.S)),
    ("HEIC", re.compile(rb"....ftyp(?:....)*?(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.S)),
    ("JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("BMP", re.compile(rb"BM")),
    ("JPEG 2000", re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n")),
    ("PNM", re.compile(rb"P[1-6fF][\s#]|Pf|PF")),
    ("QOI", re.compile(rb"qoif")),
)

_OTHERS = (
    ("a web page", re.compile(rb"\s*<(!doctype html|html|head|body)", re.I)),
    ("an SVG drawing", re.compile(rb"\s*(<\?xml.*?)?<svg", re.I | re.S)),
    ("XML", re.compile(rb"\s*<\?xml", re.I)),
    ("a PDF document", re.compile(rb"%PDF")),
    ("PostScript", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6")),
    ("a video", re.compile(rb"....ftyp|\x1aE\xdf\xa3", re.S)),
    ("an archive", re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf")),
    ("text", re.compile(rb"[\t\n\r\x20-\x7e]+\Z")),
)


def _sniff(data: bytes) -> str:
    """The format that the first bytes tell."""
    if not data:
        raise UnreadableImage("the file is empty")
    for name, pattern in _SIGNATURES:
        if pattern.match(data, 0, 256):
            return name
    kind = next((kind for kind, pattern in _OTHERS if pattern.match(data[:512])), None)
    raise UnreadableImage(
        f"not an image: it looks like {kind}" if kind else "not an image that is known"
    )
