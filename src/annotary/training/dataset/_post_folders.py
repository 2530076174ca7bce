"""Posts of folders: images with tags in files beside them, or in an imagefolder's `metadata.jsonl` above them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from annotary.errors import UnreachableImage
from annotary.records import Failure, Item
from annotary.sinks._keywords import HIERARCHY, SEPARATORS, SUBJECT, WRITTEN
from annotary.sinks._xmp import Packet
from annotary.sources import SourceOptions
from annotary.sources._paths import is_there, join, kind_of, reason
from annotary.sources._patterns import matcher
from annotary.sources.folder import walk
from annotary.training.dataset._post_tables import json_object, table_posts, tags_of_row
from annotary.training.dataset.posts import Post, PostOptions, Tags, split_tags, without_namespace

SIDECARS = (".txt", ".json", ".caption", ".xmp")
"""Files with tags beside an image, of which the first that is there counts: `dog.txt`, then `dog.jpg.txt`, …"""

METADATA = ("metadata.jsonl", "metadata.csv")
"""An imagefolder's tables, for images with no file beside them; the first of them that is there counts."""

_Found: TypeAlias = tuple[Tags, str]
"""The tags of an image, or why they cannot be read."""


def folder_posts(folder: str, options: PostOptions, source: SourceOptions) -> Iterator[Post]:
    """The images of a folder, with the tags in the files beside them, or in a table above them."""
    tables = _Metadata(folder, options, source)
    for found in walk(folder, source):
        if isinstance(found, Failure):
            lost = f"{found.image}: {found.message}" if kind_of(found.image) == "folder" else ""
            yield Post(found.image, found, (), lost=lost)
            continue
        sidecar = sidecar_of(found)
        if sidecar:
            tags, why = _read(sidecar, options)
            why = f"{sidecar} cannot be read: {why}" if why else ""
        else:
            tags, why = tables.of(found)
        item = Failure.of(found.image, UnreachableImage(why)) if why else found
        yield Post(found.relative or found.image, item, tags)


def sidecar_of(item: Item) -> str:
    """The file with tags beside an image; empty where there is none."""
    path = os.fspath(item.path or "")
    stem = path.removesuffix(Path(path).suffix)
    for one in dict.fromkeys(base + ending for ending in SIDECARS for base in (stem, path)):
        if is_there(one):
            return one
    return ""


def has_rows(folder: str, source: SourceOptions, *, takes_json: bool) -> bool:
    """Whether tags, or images, of a folder are in rows that have columns: those of an imagefolder.

    Args:
        folder: Which.
        source: Which of its files are taken.
        takes_json: Whether JSON beside an image counts, too.
    """
    tables = _Metadata(folder, PostOptions(), source)
    for found in walk(folder, source):
        if isinstance(found, Item):
            if tables.are_above(found):
                return True
            if takes_json and sidecar_of(found).endswith(".json"):
                return True
    return False


def _read(sidecar: str, options: PostOptions) -> _Found:
    """The tags in a file beside an image."""
    try:
        content = Path(sidecar).read_bytes()
        if sidecar.endswith(".xmp"):
            return _xmp_tags(content), ""
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        if sidecar.endswith(".json"):
            return tags_of_row(json_object(text), options), ""
        return tuple(map(without_namespace, split_tags(text, options.tag_separator))), ""
    except (OSError, ValueError, RecursionError) as error:
        return (), reason(error) if isinstance(error, OSError) else str(error)


def _xmp_tags(content: bytes) -> Tags:
    """The keywords of a packet, whoever wrote them; with their categories where annotary did."""
    if not content.strip():
        return ()
    packet = Packet(content)
    told: dict[str, str] = {}
    for entry in packet.values(WRITTEN[HIERARCHY]):
        category, mark, name = entry.rpartition(SEPARATORS[HIERARCHY])
        if mark:
            told.setdefault(name, category)
    words = (" ".join(word.split()) for word in packet.values(SUBJECT))
    tags = (without_namespace(word) for word in words if word)
    return tuple((name, category or told.get(name, "")) for name, category in tags)


class _Metadata:
    """The tables of an imagefolder, which lie in a folder or in the folders in it, and are read when they are needed.

    Args:
        folder: Which.
        options: Where tags are.
        source: Which of its files are taken.
    """

    def __init__(self, folder: str, options: PostOptions, source: SourceOptions) -> None:
        self._folder = folder
        self._options = replace(options, images=None)
        self._source = source
        self._is_left_out = matcher(source.exclude_files)
        self._places: dict[str, str] = {}
        self._tables: dict[str, dict[str, _Found]] = {}
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}

    def of(self, item: Item) -> _Found:
        """The tags of an image, in the nearest table that names it."""
        for inside in self._above(item):
            found = self._table(inside).get(_absolute(os.fspath(item.path or "")))
            if found is not None:
                return found
        return (), ""

    def are_above(self, item: Item) -> bool:
        """Whether there is a table that may name an image."""
        return any(self._place(inside) for inside in self._above(item))

    def _above(self, item: Item) -> Iterator[str]:
        """The folders that an image is in, relative to the whole, the innermost first."""
        inside = (item.relative or "").rpartition("/")[0]
        yield inside
        while inside:
            inside = inside.rpartition("/")[0]
            yield inside

    def _place(self, inside: str) -> str:
        """Where the table of a folder is; empty where there is none."""
        if inside not in self._places:
            here = join(self._folder, inside) if inside else self._folder
            names = (name for name in METADATA if not self._is_left_out(join(inside, name)))
            paths = (join(here, name) for name in names)
            self._places[inside] = next((path for path in paths if kind_of(path) == "file"), "")
        return self._places[inside]

    def _table(self, inside: str) -> dict[str, _Found]:
        """The tags of the images that the table of a folder names, by absolute paths."""
        place = self._place(inside)
        if inside not in self._tables:
            found: dict[str, _Found] = {}
            self._tables[inside] = found
            here = os.fspath(Path(place).parent)
            for post in table_posts(place, self._options, self._source) if place else ():
                why = post.item.message if isinstance(post.item, Failure) else ""
                # Most tags come many times; each is kept once.
                tags = tuple(self._pairs.setdefault(tag, tag) for tag in post.tags)
                found.setdefault(_absolute(os.path.join(here, post.id)), (tags, why))  # noqa: PTH118
        return self._tables[inside]


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - a link stays what it is
