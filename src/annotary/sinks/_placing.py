"""Putting images into folders: under names that every system takes, never over another file, and never twice."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from annotary.errors import ImageError, OutputError, SidecarError, UnreachableImage
from annotary.records import Item
from annotary.sinks._atomic import replacing
from annotary.sinks._contract import Placing, SinkOptions
from annotary.sinks._names import NameSet
from annotary.sinks._sidecars import name_for
from annotary.sinks._signatures import BEGINNING, SUFFIXES, suffix_of

MOST_BYTES = 200
"""Of a name in UTF-8; file systems take 255, and a digest or the end of a temporary name must fit behind it."""

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
"""What Windows, and of these the slash also others, have in no name."""

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(?=\.|$)", re.I)
"""Names of devices on Windows, with any suffix:
https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file"""

_CHUNK = 1 << 20


def place(item: Item, folder: Path, options: SinkOptions, taken: NameSet | None = None) -> Path:
    """Put an image into a folder, under its own name made safe.

    What is there is never replaced: a file that holds this image already is left alone and taken for it, and where
    another file has the name, eight digits are added that follow from the image's name. A killed process leaves the
    whole file or none.

    Args:
        item: The image: with `data`, which is written, or with a `path`, which is copied or linked.
        folder: Where; made when it is missing.
        options: `placing` says whether the file is a copy, a hard link or a symbolic link.
        taken: The places of other images, in any spelling of upper and lower case; this one's is added. With it, two
            images with the same name and content each have a file.

    Returns:
        The file, in the folder.

    Raises:
        ImageError: This image cannot be had, or cannot be linked.
        OutputError: The folder cannot be written.
    """
    for name in _names_for(item):
        path = folder / name
        key = folded(os.fspath(path))
        if taken is not None and key in taken:
            continue
        try:
            if os.path.lexists(path):
                if not _is_there(path, item, options.placing):
                    continue
            else:
                folder.mkdir(parents=True, exist_ok=True)
                _put(path, item, options.placing)
        except OSError as error:
            raise _told(error, path) from error
        if taken is not None:
            taken.add(key)
        return path
    raise AssertionError("names never end")


class FolderNames:
    """Names of folders, one for each text: whatever a label holds, each label has a folder of its own.

    Args:
        reserved: Names that no folder may have.
    """

    def __init__(self, *reserved: str) -> None:
        self._names: dict[str, str] = {}
        self._taken = {folded(name) for name in reserved}

    def name_of(self, text: str) -> str:
        """The folder of a text: the text itself where systems take that, and no other has it."""
        if text not in self._names:
            name = next(name for name in _spellings(text) if folded(name) not in self._taken)
            self.keep(text, name)
        return self._names[text]

    def keep(self, text: str, name: str) -> None:
        """Remember the folder that a text has had in an earlier run."""
        self._names.setdefault(text, name)
        self._taken.add(folded(name))


def safe_name(text: str, most_bytes: int = MOST_BYTES) -> str:
    """A text as the name of a file or folder on every system; the same text where it is one already.

    Args:
        text: Anything.
        most_bytes: How long it may be, in UTF-8; the end is cut off.
    """
    name = unicodedata.normalize("NFC", text).encode("utf-8", "replace").decode()
    name = _FORBIDDEN.sub("_", name).strip(" ")
    name = re.sub(r"^\.+", lambda dots: "_" * len(dots.group()), name)
    name = _cut(name, most_bytes).rstrip(". ")
    return _RESERVED.sub(r"\1_", name, count=1) if _RESERVED.match(name) else name or "_"


def folded(name: str) -> str:
    """What two names share that are one on a system that ignores case, or spells letters with accents as two."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _spellings(text: str) -> Iterator[str]:
    """What the folder of a text may be called, best first."""
    yield safe_name(text)
    for number in range(1 << 32):
        yield f"{safe_name(text, MOST_BYTES - 9)}-{_digest(text, number)}"


def _names_for(item: Item) -> Iterator[str]:
    """What the file of an image may be called, best first."""
    name = PurePosixPath(item.relative).name if item.relative else name_for(item.image)
    stem, dot, suffix = name.rpartition(".")
    if not stem or suffix.lower() not in SUFFIXES:
        asked = suffix_of(_beginning(item))
        stem, suffix = (
            (name, f".{asked}") if asked else (stem or name, dot and stem and f".{suffix}")
        )
    else:
        suffix = f".{suffix}"
    suffix = "" if len(suffix) > 1 + MOST_BYTES // 4 else _FORBIDDEN.sub("_", suffix)
    room = MOST_BYTES - len(suffix.encode("utf-8", "replace"))
    yield safe_name(safe_name(stem, room) + suffix)
    for number in range(1 << 32):
        yield safe_name(f"{safe_name(stem, room - 9)}-{_digest(item.image, number)}{suffix}")


def _beginning(item: Item) -> bytes:
    """The first bytes of an image; none where they cannot be had, which copying it tells."""
    if item.data is not None:
        return item.data[:BEGINNING]
    if item.path is None:
        return b""
    try:
        with item.path.open("rb") as file:
            return file.read(BEGINNING)
    except OSError:
        return b""


def _digest(text: str, number: int) -> str:
    encoded = text.encode("utf-8", "backslashreplace")
    salt = number.to_bytes(4, "little")
    return hashlib.blake2b(encoded, digest_size=4, salt=salt).hexdigest()


def _cut(name: str, most_bytes: int) -> str:
    """The beginning of a name, of whole letters."""
    return name.encode()[:most_bytes].decode("utf-8", "ignore")


def _is_there(path: Path, item: Item, placing: Placing) -> bool:
    """Whether a file is what would be put there."""
    if placing == "symlink":
        return os.path.islink(path) and os.readlink(path) == _target(item)  # noqa: PTH114, PTH115
    if path.is_symlink() or not path.is_file():
        return False
    if placing == "hardlink":
        return os.path.samefile(path, _target(item))  # noqa: PTH121
    with path.open("rb") as file:
        if item.data is not None:
            return os.fstat(file.fileno()).st_size == len(item.data) and file.read() == item.data
        with _original(item).open("rb") as original:
            if os.fstat(file.fileno()).st_size != os.fstat(original.fileno()).st_size:
                return False
            while chunk := original.read(_CHUNK):
                if file.read(_CHUNK) != chunk:
                    return False
    return True


def _put(path: Path, item: Item, placing: Placing) -> None:
    """Make the file, where there is none."""
    if placing == "symlink":
        os.symlink(_target(item), path)  # noqa: PTH211
    elif placing == "hardlink":
        os.link(os.path.realpath(_target(item)), path)
    elif item.data is not None:
        with replacing(path) as file:
            file.write(item.data)
    else:
        try:
            original = _original(item).open("rb")
        except OSError as error:
            raise UnreachableImage(f"cannot be read: {error.strerror}") from error
        with original, replacing(path) as file:
            shutil.copyfileobj(original, file, _CHUNK)


def _original(item: Item) -> Path:
    """The file of an image.

    Raises:
        ImageError: It has none, nor bytes.
    """
    if item.path is None:
        raise ImageError("a folder holds the encoded image, and this one came without its bytes")
    return item.path


def _target(item: Item) -> str:
    """What a link leads to.

    Raises:
        SidecarError: The image is no file.
    """
    if item.path is None:
        raise SidecarError("this is no file that can be linked to; say --placing copy")
    return os.path.abspath(item.path)  # noqa: PTH100


def _told(error: OSError, path: Path) -> ImageError | OutputError:
    """One line of what is wrong; links that the disk does not make are wrong for all images."""
    if error.errno in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
        return OutputError(f"cannot link {path}: {error.strerror}; say --placing copy")
    if error.errno == errno.ENAMETOOLONG:
        return SidecarError(f"its file cannot be {path}: {error.strerror}")
    return OutputError(
        f"cannot write {path}: {error.strerror}; the same command continues once this is mended"
    )
