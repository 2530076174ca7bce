"""Tags and captions in the image files themselves: a sink that changes the XMP packet of a file and nothing else."""

from __future__ import annotations

import hashlib
import importlib
import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import Image, ImageFile, features

from annotary.errors import SidecarError
from annotary.records import Annotation, Item
from annotary.sinks import _exiftool
from annotary.sinks._atomic import write_atomically
from annotary.sinks._blocks import BEGINNING
from annotary.sinks._containers import Container, container_of, keeps_all
from annotary.sinks._contract import SinkOptions
from annotary.sinks._keywords import is_done, with_keywords
from annotary.sinks._sidecars import Claims
from annotary.sinks._xmp import EMPTY_PACKET

TIFF_SUFFIXES = (".tif", ".tiff")
"""Files with the structure of a TIFF that are really one; raw formats of cameras have it, too, and are not touched."""

_PLUGINS = {"JPEG": "Jpeg", "PNG": "Png", "WebP": "WebP", "TIFF": "Tiff", "AVIF": "Avif"}
"""What Pillow calls the formats."""

_DAMAGE = (ValueError, LookupError, struct.error, zlib.error, OSError)
"""What walking through the pieces of a damaged file raises."""

_NOT_DECODED = (
    *_DAMAGE,
    *(SyntaxError, EOFError, TypeError, ArithmeticError, AssertionError, AttributeError),
    *(MemoryError, RuntimeError, Image.DecompressionBombError),
)
"""What Pillow and the libraries under it raise on bytes that are not what they claim to be."""


class EmbeddedPackets:
    """A sink that writes into image files.

    A new file is made beside the old one, compared with it, and takes its place: its mode and extended attributes, but
    not its time, as the file did change.

    Args:
        options: What happens to files that tags were written to before.
        parts: What is written: tags, labels, captions.
    """

    def __init__(self, options: SinkOptions, parts: tuple[str, ...]) -> None:
        self._parts = parts
        self._skips = options.on_existing == "skip"
        self._replaces = options.on_existing == "overwrite"
        self._claims = Claims()
        self._exiftool = _exiftool.ExifTool()

    def holds(self, item: Item) -> bool:
        """Whether tags were written to the image, and it is to be left alone."""
        if item.path is None or not self._claims.claim(item, Path(os.path.realpath(item.path))):
            return False
        if not self._skips:
            return False
        try:
            with item.path.open("rb") as file:
                container = self._container(item.path, file.read(BEGINNING))
                packet = container.packet(file)
            return packet is not None and is_done(packet, self._parts)
        except (*_DAMAGE, SidecarError):
            return False  # writing says what is wrong

    def write(self, item: Item, annotation: Annotation) -> None:
        """Write the tags into the image, or leave it as it is.

        Raises:
            SidecarError: The image is no file, is of a format without XMP, or is damaged; it was not touched.
        """
        if item.path is None:
            raise SidecarError("this is no file that tags could be written into")
        place = Path(os.path.realpath(item.path))
        self._claims.check(item, place)
        try:
            before = place.read_bytes()
        except OSError as error:
            raise SidecarError(f"cannot read {place}: {error.strerror}") from error
        container = self._container(place, before[:BEGINNING])
        try:
            packet = container.packet(BytesIO(before))
            keywords = packet or EMPTY_PACKET
            changed = with_keywords(keywords, annotation, self._parts, replaces=self._replaces)
            if changed == packet:
                return
            after = container.with_packet(before, changed)
            is_right = differs_in_packet_alone(before, after, changed, container)
        except _DAMAGE as error:
            raise SidecarError(f"no tags can be written into it: {_told(error)}") from error
        if not is_right:
            raise SidecarError("no tags can be written into it: the rest of the file would change")
        write_atomically(place, after, is_durable=True)

    def close(self, *, complete: bool) -> None:
        """End ExifTool, if it was needed."""
        self._exiftool.close()

    def _container(self, path: Path, beginning: bytes) -> Container:
        """The format of a file; those that are not written here are written by ExifTool."""
        container = container_of(beginning) or _exiftool.container_of(beginning, self._exiftool)
        is_raw = container is not None and container.name == "TIFF" and not _is_tiff(path)
        if container is None or is_raw:
            raise SidecarError(
                "--embed writes into JPEG, PNG, WebP and TIFF files, with ExifTool also into GIF, AVIF, HEIC and"
                " JPEG XL, and this is none of them; leave it out for a sidecar"
            )
        return container


def differs_in_packet_alone(
    before: bytes, after: bytes, packet: bytes, container: Container
) -> bool:
    """Whether a file is another with this packet in it, and nothing else of it changed.

    Raises:
        ValueError, LookupError, struct.error, zlib.error, OSError: One of the two is damaged.
    """
    if container.packet(BytesIO(after)) != packet or not keeps_all(before, after, container):
        return False
    return not container.has_index or _pixels(before, container) == _pixels(after, container)


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in TIFF_SUFFIXES


def _told(error: Exception) -> str:
    """One line of what is wrong."""
    if isinstance(error, struct.error | LookupError | zlib.error):
        return "it is damaged"
    text = " ".join(str(error).split())
    is_of_packet = text.startswith(("is ", "has "))
    return f"its XMP {text}" if is_of_packet else text


def _pixels(data: bytes, container: Container) -> list[bytes]:
    """A digest of the mode, the size, the palette and the pixels of each frame, as Pillow decodes them.

    The plugin is named, so that Pillow neither guesses the format nor warns of large sizes, which the run has limited.
    A format that nothing installed decodes has no frames; then the comparison of its pieces has to be enough.

    Raises:
        ValueError: It cannot be decoded.
    """
    if container.name == "HEIC":
        return _heic_pixels(data)
    if container.name == "AVIF" and not features.check("avif"):
        return []
    name = _PLUGINS[container.name]
    plugin = getattr(importlib.import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile")
    frames = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TIFFs with odd entries, which the run has told of
            with cast("ImageFile.ImageFile", plugin(BytesIO(data))) as image:
                for number in range(getattr(image, "n_frames", 1)):
                    image.seek(number)
                    frames.append(_digest(image))
    except _NOT_DECODED as error:
        raise ValueError("it cannot be decoded") from error
    return frames


def _heic_pixels(data: bytes) -> list[bytes]:
    """A digest of each picture's mode, size and pixels; none where libheif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return []
    try:
        pictures = pillow_heif.open_heif(BytesIO(data))
        heads = [repr((one.mode, one.size, one.stride)).encode() for one in pictures]
        return [
            hashlib.blake2b(head + bytes(one.data), digest_size=16).digest()
            for head, one in zip(heads, pictures, strict=True)
        ]
    except _NOT_DECODED as error:
        raise ValueError("it cannot be decoded") from error


def _digest(image: ImageFile.ImageFile) -> bytes:
    digest = hashlib.blake2b(repr((image.mode, image.size)).encode(), digest_size=16)
    digest.update(image.tobytes())
    if image.palette:
        digest.update(bytes(image.palette.palette))
    return digest.digest()
