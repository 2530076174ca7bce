"""A folder of images, and the folders in it.

Order: first the files of a folder, then its folders one after the other, each sorted by name. So
that a folder of a million files starts at once and takes little memory, entries are sorted in
chunks of 10,000 as the system lists them; a folder of up to 10,000 entries is sorted as a whole.

Taken are files with a suffix of `IMAGE_SUFFIXES`, or, when there are include patterns, exactly the
files that match one of them; an exclude pattern leaves out files, and folders with all that is in
them. `annotary.sources._patterns` says what patterns mean. Hidden files and folders (their name
begins with a dot) are left out. A link to a file is followed, a link to a folder is not (it could
lead in circles). A link that leads nowhere, a pipe or a device with an image's name, and a folder
that cannot be listed are failures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import TypeAlias

from annotary.errors import UnreachableImage
from annotary.records import Failure, Item
from annotary.sources._options import SourceOptions
from annotary.sources._paths import join, kind_of, reason
from annotary.sources._patterns import matcher

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
        ".avif", ".avifs", ".heic", ".heif", ".jxl", ".mpo", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2",
    }
)  # fmt: skip
"""Endings of file names, in lower case, that are taken for images."""

CHUNK = 10_000
"""How many entries of a folder are held and sorted at a time."""

Scan: TypeAlias = Callable[[str], AbstractContextManager[Iterable[os.DirEntry[str]]]]


def accepts(argument: str) -> bool:
    """Whether the argument is a folder that exists."""
    return kind_of(argument) == "folder"


def items(argument: str, options: SourceOptions) -> Iterator[Item | Failure]:
    """The images in the folder, named by the argument and their path in it."""
    return walk(argument, options)


def looked_for(options: SourceOptions) -> str:
    """What is taken from a folder, for the message that nothing was found."""
    if options.include_files:
        taken = "files that match " + _listed(options.include_files)
    else:
        taken = ", ".join(sorted(IMAGE_SUFFIXES))
    if options.exclude_files:
        taken += " but not " + _listed(options.exclude_files)
    where = "in it and its folders" if options.recursive else "in it alone (--no-recursive)"
    return f"{taken} {where}"


def walk(
    folder: str, options: SourceOptions, *, chunk: int = CHUNK, scan: Scan = os.scandir
) -> Iterator[Item | Failure]:
    """The images in a folder.

    Args:
        folder: Where to look, as the user typed it.
        options: Which files are taken, and whether folders are entered.
        chunk: How many entries are held and sorted at a time.
        scan: What lists a folder.

    Raises:
        UsageError: A pattern is empty.
    """
    is_taken = matcher(options.include_files) if options.include_files else has_image_suffix
    is_left_out = matcher(options.exclude_files)
    pending = [""]
    while pending:
        inside = pending.pop()  # relative to the folder, with "/" at its end
        here = join(folder, inside.removesuffix("/")) if inside else folder
        inner: list[str] = []
        try:
            with scan(here) as listing:
                entries = iter(listing)
                while batch := sorted(islice(entries, chunk), key=_name):
                    for entry in batch:
                        path = inside + entry.name
                        if entry.name.startswith(".") or is_left_out(path):
                            continue
                        if _is_folder(entry):
                            if options.recursive and not is_left_out(path + "/"):
                                inner.append(path + "/")
                        elif is_taken(path):
                            found = _image(entry, join(here, entry.name), path)
                            if found is not None:
                                yield found
        except OSError as error:
            message = f"this folder cannot be listed: {reason(error)}"
            yield Failure.of(here, UnreachableImage(message))
        inner.sort(reverse=True)
        pending += inner


def has_image_suffix(path: str) -> bool:
    """Whether a path ends as the names of images do."""
    stem, dot, ending = path.rpartition(".")
    return bool(stem) and dot + ending.lower() in IMAGE_SUFFIXES


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False  # `_image` says what is wrong with it


def _image(entry: os.DirEntry[str], path: str, relative: str) -> Item | Failure | None:
    """The entry as an image, `relative` to the folder asked for; nothing for a link to a folder."""
    if sys.version_info >= (3, 12) and entry.is_junction():
        return None
    try:
        if entry.is_file():
            return Item.from_path(path, relative)
        if entry.is_dir():
            return None
        if entry.is_symlink() and not kind_of(path):
            message = f"a broken link to {os.readlink(path)!r}"  # noqa: PTH115
        else:
            message = "a pipe or a device, not a file"
    except OSError as error:
        message = reason(error)
    return Failure.of(path, UnreachableImage(message))


def _listed(patterns: Iterable[str]) -> str:
    return " or ".join(repr(pattern) for pattern in patterns)
