"""The images in a ZIP archive (.zip, .cbz), in its order and without unpacking it.

An image is named by the archive and its path in it: `photos.zip/2024/a.jpg`. Which members are taken is told as for
files of a folder. Directories and symbolic links are not looked at; a member that is encrypted, damaged, larger than
allowed, or whose path leads outside of the archive is a failure, and the others are done.
"""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from annotary.errors import UnreachableImage
from annotary.records import Failure, Item
from annotary.sources import folder
from annotary.sources._members import OUTSIDE, chooser, inner_path
from annotary.sources._options import SourceOptions
from annotary.sources._paths import kind_of, reason
from annotary.sources._shard import Shard

SUFFIXES = (".zip", ".cbz")
"""Endings of file names, in lower case, that are taken for archives."""

READS_IMAGES = True

_PIECE = 1024 * 1024
_SMALL_PIECE = 4096
"""For methods whose decoder gives all that a piece stands for at once, which may be 20,000 times as much."""

_IS_ENCRYPTED = 0x1  # bit 0 of the general purpose flag (PKWARE's APPNOTE, 4.4.4)
_UNIX_MODE = 16  # where the upper half of a member's external attributes begins


def accepts(argument: str) -> bool:
    """Whether the argument is a file with the suffix of an archive."""
    return Path(argument).suffix.lower() in SUFFIXES and kind_of(argument) == "file"


def items(argument: str, options: SourceOptions) -> Iterator[Item | Failure | None]:
    """The images in the archive, named by the argument and their path in it."""
    is_taken = chooser(options)
    shard = Shard.of(options.shard)
    try:
        with zipfile.ZipFile(argument) as archive:
            for member in archive.infolist():
                if (
                    member.filename.endswith("/")
                    or _is_link(member)
                    or not is_taken(member.filename)
                ):
                    continue
                path = inner_path(member.filename)
                if not path:
                    name = f"{argument}/{member.filename}"
                    yield Failure.of(name, UnreachableImage(OUTSIDE))
                else:
                    is_here = shard.has(path)
                    yield _image(archive, member, argument, path, options) if is_here else None
    except OSError as error:
        yield _broken(argument, reason(error))
    except (zipfile.BadZipFile, ValueError, LookupError, NotImplementedError, EOFError) as error:
        yield _broken(argument, str(error))


def looked_for(options: SourceOptions) -> str:
    """What is taken from an archive, for the message that nothing was found."""
    return folder.looked_for(options).rpartition(" in it ")[0]


def _image(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    argument: str,
    path: str,
    options: SourceOptions,
) -> Item | Failure:
    name = f"{argument}/{path}"
    try:
        return Item(name, data=_read(archive, member, options.max_bytes), relative=path)
    except UnreachableImage as error:
        return Failure.of(name, error)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """The bytes of a member.

    Raises:
        UnreachableImage: They cannot be had.
    """
    too_large = f"larger than {max_bytes:,} bytes (--max-bytes)"
    if member.flag_bits & _IS_ENCRYPTED:
        raise UnreachableImage("it is encrypted in its archive")
    if member.file_size > max_bytes:
        raise UnreachableImage(too_large)
    try:
        with archive.open(member) as file:
            # What the archive says of a size need not be true.
            is_bounded = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            data = bytearray()
            while piece := file.read(_PIECE if is_bounded else _SMALL_PIECE):
                data += piece
                if len(data) > max_bytes:
                    raise UnreachableImage(too_large)
            return bytes(data)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        message = f"damaged in its archive: {str(error) or 'it ends too early'}"
        raise UnreachableImage(message) from error
    except (NotImplementedError, RuntimeError) as error:
        raise UnreachableImage(f"cannot be unpacked: {error}") from error


def _is_link(member: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(member.external_attr >> _UNIX_MODE)


def _broken(argument: str, why: str) -> Failure:
    return Failure.of(argument, UnreachableImage(f"this archive cannot be read: {why}"))
