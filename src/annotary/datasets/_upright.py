"""Images that their EXIF turns, written upright: boxes are of the upright image, and not every trainer turns it.

PyTorch's and Hugging Face's readers open files with Pillow, which leaves them as they are stored; OpenCV and what is
made with it (ultralytics, supervision) turns JPEGs. In the same file the same box would be right for one and wrong for
the other. So an image whose EXIF turns it is stored anew, upright and without EXIF; of all others every byte is kept.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import PurePosixPath

from PIL import Image

from annotary import images
from annotary.errors import UnreadableImage
from annotary.images import DecodeOptions

_JPEG_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif"))

_QUALITY = 95
"""Of JPEG; with all colours at full resolution, so that turning it costs less than can be seen."""

_TURNED_BY_FORMAT = frozenset(("JPEG", "PNG", "WebP", "TIFF", "AVIF", "JPEG XL"))
"""Formats whose pictures may be stored as they are not meant to be seen; of others decoders give them upright."""

_NO_LIMIT = DecodeOptions(max_pixels=sys.maxsize, reduce=False)
"""They were decoded before, with the user's limit."""


def orientation_of(data: bytes) -> int:
    """How the picture in a file is turned, 1..8 as in EXIF; 1 where that cannot be told.

    Args:
        data: The encoded bytes.
    """
    opened = _opened(data)
    return opened.orientation if opened is not None and 2 <= opened.orientation <= 8 else 1


def upright_suffix(suffix: str) -> str:
    """The suffix of a file that is stored anew: JPEG stays JPEG, and all others become PNG, which loses nothing."""
    return suffix if suffix.lower() in _JPEG_SUFFIXES else ".png"


def upright(data: bytes, name: str) -> bytes:
    """An image, stored anew so that it is upright without EXIF; the same bytes each time.

    Args:
        data: The encoded bytes.
        name: What it will be called, which tells its format.

    Raises:
        UnreadableImage: It cannot be decoded.
    """
    picture = Image.fromarray(images.decode(data, options=_NO_LIMIT).pixels)
    profile = _profile(data)
    file = io.BytesIO()
    if PurePosixPath(name).suffix.lower() in _JPEG_SUFFIXES:
        picture.save(file, "JPEG", quality=_QUALITY, subsampling=0, icc_profile=profile)
    else:
        picture.save(file, "PNG", icc_profile=profile)
    return file.getvalue()


def _profile(data: bytes) -> bytes | None:
    """The colour profile, which pixels in RGB still belong to."""
    opened = _opened(data)
    if opened is None or opened.image.mode != "RGB":
        return None
    return opened.image.info.get("icc_profile")


def _opened(data: bytes) -> images._Opened | None:
    """The header of a file; None where it has none that can be read, or none that could turn the picture."""
    for name, (signature, read) in images.FORMATS.items():
        if re.match(signature, data[:256], re.S):
            if name not in _TURNED_BY_FORMAT:
                return None
            try:
                return read(data, _NO_LIMIT)
            except (UnreadableImage, *images._DAMAGE):
                return None
    return None
